"""Inputs rounded as the packed layer will round them, with gradients that pass straight through; ranges stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..inputs.quantizer import InputRange
from ..inputs.straight_through import rounded_straight_through
from ..schemes import InputScheme


@dataclass(frozen=True)
class InputQuantizer:
    """Rounds what a layer is called on.

    Attributes:
        scheme: How.
        found: The range, which does not learn; None where each token has its own.
    """

    scheme: InputScheme
    found: InputRange | None

    def __call__(self, x: Tensor) -> Tensor:
        """Return the rounded inputs."""
        stored = (None, None) if self.found is None else self.found.tensors(x.device)
        return rounded_straight_through(x, self.scheme, *stored)


@dataclass(frozen=True)
class _Hook:
    """A forward pre-hook that rounds a layer's input, whether it is given by position or by name."""

    quantizer: InputQuantizer

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (self.quantizer(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "input": self.quantizer(kwargs["input"])}


def input_quantizer_of(layer: nn.Module) -> InputQuantizer | None:
    """Return what rounds the inputs of a layer; None if nothing does."""
    return next((hook.quantizer for hook in layer._forward_pre_hooks.values() if isinstance(hook, _Hook)), None)


def round_inputs_by(layer: nn.Module, quantizer: InputQuantizer | None) -> None:
    """Let a layer's inputs be rounded from now on; None to end that."""
    for key in [key for key, hook in layer._forward_pre_hooks.items() if isinstance(hook, _Hook)]:
        del layer._forward_pre_hooks[key]
        layer._forward_pre_hooks_with_kwargs.pop(key, None)
    if quantizer is not None:
        layer.register_forward_pre_hook(_Hook(quantizer), with_kwargs=True)
