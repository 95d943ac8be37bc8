"""Inputs rounded as the packed layer will round them, with gradients that pass straight through and learned ranges."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import NonFiniteError
from ..inputs.quantizer import InputRange
from ..inputs.straight_through import rounded_straight_through
from ..schemes import InputScheme
from .quantizer import relative_to


class InputQuantizer:
    """Rounds what a layer is called on, or what a sum or an average reads.

    The scale is ``first.scale * relative_scale``, as a `WeightQuantizer` has it, with LSQ's gradient scale
    ``g = 1 / sqrt(N Q)`` for N values a sample and a largest level Q (arXiv:1902.08153, section 2.2). The code of zero
    stays as it was.

    Attributes:
        scheme: How.
        first: The range at the start; None where each token has its own.
        relative_scale: Learned, float32 [], 1 at the start; None where each token has its own.
    """

    def __init__(
        self, scheme: InputScheme, first: InputRange | None, *, learn: bool = True, device: torch.device | None = None
    ) -> None:
        """Begin with a calibrated range."""
        self.scheme, self.first = scheme, first
        self.relative_scale: nn.Parameter | None = None
        if first is not None:
            self._first_scale, self._zero_point = first.tensors(device)
            self.relative_scale = nn.Parameter(torch.ones_like(self._first_scale), requires_grad=learn)
            self._largest = max(first.zero_point, 2**scheme.bits - 1 - first.zero_point)

    def __call__(self, x: Tensor) -> Tensor:
        """Return the rounded values."""
        if self.relative_scale is None:
            return rounded_straight_through(x, self.scheme)
        values = x.numel() / max(len(x), 1) if x.dim() > 1 else x.numel()
        slope = 1 / (sqrt(max(values, 1) * self._largest) * self._first_scale)
        return rounded_straight_through(x, self.scheme, self._scale(), self._zero_point, (self.relative_scale, slope))

    def found(self, name: str) -> InputRange | None:
        """Return the range that the next forward pass rounds with; None where each token has its own.

        Raises:
            NonFiniteError: If it is NaN or infinite.
        """
        if self.first is None:
            return None
        scale = float(self._scale())
        if not 0 < scale < float("inf"):
            raise NonFiniteError(f"The learned range of the inputs of {name!r} is NaN or infinite.")
        return InputRange(scale, self.first.zero_point)

    def move(self, function: Callable[[Tensor], Tensor]) -> None:
        """Follow a module to another device; types never change. The learned scale stays the same Parameter."""
        if self.relative_scale is None:
            return
        device = function(torch.empty(0, device=self._first_scale.device)).device
        self._first_scale, self._zero_point = self._first_scale.to(device), self._zero_point.to(device)
        self.relative_scale.data = self.relative_scale.data.to(device)
        if self.relative_scale.grad is not None:
            self.relative_scale.grad.data = self.relative_scale.grad.data.to(device)

    def _scale(self) -> Tensor:
        assert self.relative_scale is not None
        return relative_to(self._first_scale, self.relative_scale, torch.float32)


def input_quantizers(
    schemes: Mapping[str, tuple[InputScheme, torch.device | None]], ranges: Mapping[str, InputRange], *, learn: bool
) -> dict[str, InputQuantizer]:
    """Return what rounds inputs, by name; those that begin with one range share it, so that it stays one.

    Layers that read one tensor have one range after calibration, and a runtime quantizes that tensor once.

    Args:
        schemes: Layer, or operand of a sum or average, to its scheme, and where it is computed.
        ranges: Name to range, where the scheme has one.
        learn: Whether ranges learn.
    """
    shared: dict[Any, InputQuantizer] = {}
    found = {}
    for name, (scheme, device) in schemes.items():
        first = ranges[name] if scheme.needs_range else None
        key = (scheme, first, device)
        if key not in shared:
            shared[key] = InputQuantizer(scheme, first, learn=learn, device=device)
        found[name] = shared[key]
    return found


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
