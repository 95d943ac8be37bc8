"""Experts whose weights are fused to tensors [E, out, in], and which of them each token meets.

Such a module multiplies the tokens of one expert at a time with a slice of the weight: `F.linear(hidden[tokens],
weight[expert])`. The slice says which rows of the weight were used, the indexing before it which tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..tools.attributes import shadowed

_CHOICE = "_experts_implementation"
"""Attribute of a configuration of `transformers` that says by which kernels experts compute."""


class ExpertCall(NamedTuple):
    """One product with the weight of one expert.

    Attributes:
        weight: Name of the weight.
        inputs: [tokens, columns], what the expert got.
        rows: Which rows of the weight, seen as one matrix, were used.
        tokens: Which of the module's tokens these are; None for all of them, in order.
        total: How many tokens the module got.
        known: Whether it is known which tokens these are.
    """

    weight: str
    inputs: Tensor
    rows: slice
    tokens: Tensor | None
    total: int
    known: bool


OnExpert = Callable[[ExpertCall, Tensor], Tensor]


def expert_weights(module: nn.Module) -> list[str]:
    """Return the names of a module's weights [E, out, in], with E one of its attributes that speak of experts.

    Example:
        >>> class Experts(nn.Module): ...
        >>> experts = Experts()
        >>> experts.num_experts, experts.up = 2, nn.Parameter(torch.zeros(2, 6, 4))
        >>> expert_weights(experts)
        ['up']
    """
    if type(module).__module__.startswith("torch."):
        return []
    counts = {value for name, value in vars(module).items() if "expert" in name.lower() and isinstance(value, int)}
    parameters = module._parameters.items()
    return [n for n, p in parameters if p is not None and p.dim() == 3 and p.shape[0] in counts and p.shape[0] > 1]


@contextmanager
def experts_watched(owner: nn.Module, weights: Mapping[str, Tensor], on_call: OnExpert) -> Iterator[None]:
    """Report every product of tokens with the weight of an expert while the context lasts.

    Args:
        owner: The module.
        weights: Any names to its weights, [E, out, in].
        on_call: Called with each product and its output; what it returns takes the output's place.
    """
    forward = owner.forward

    def watched_forward(*args: Any, **kwargs: Any) -> Any:
        tokens = args[0] if args else next(iter(kwargs.values()))
        with _ExpertProducts(weights, tokens.shape[:-1].numel(), on_call):
            return forward(*args, **kwargs)

    with shadowed(owner, forward=watched_forward):
        yield


@contextmanager
def one_expert_at_a_time(model: nn.Module) -> Iterator[None]:
    """Let experts of `transformers` compute in loops, where their kernels have no second derivatives."""
    configs = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}
    own = [config for config in configs.values() if hasattr(config, _CHOICE)]
    before = [(config, getattr(config, _CHOICE)) for config in own]
    try:
        for config in own:
            setattr(config, _CHOICE, "eager")
        yield
    finally:
        for config, choice in before:
            setattr(config, _CHOICE, choice)


class _ExpertProducts(TorchFunctionMode):
    """Sees tokens being chosen, and products with slices of weights."""

    def __init__(self, weights: Mapping[str, Tensor], total: int, on_call: OnExpert) -> None:
        super().__init__()
        self._weights, self._total, self._on_call = weights, total, on_call
        self._tokens: Tensor | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func is Tensor.__getitem__:
            values, index = args
            whole = isinstance(index, Tensor) and index.dim() == 1 and not index.is_floating_point()
            if whole and index.dtype != torch.bool and len(values) == self._total:
                self._tokens = index
        elif func is torch.nn.functional.linear and len(args) > 1 and args[1].dim() == 2:
            inputs, weight = args[0], args[1]
            for name, own in self._weights.items():
                if weight._base is own and weight.is_contiguous() and weight.shape == own.shape[1:]:
                    return self._on_call(self._call(name, inputs, weight, own), output)
        return output

    def _call(self, name: str, inputs: Tensor, weight: Tensor, own: Tensor) -> ExpertCall:
        first = (weight.storage_offset() - own.storage_offset()) // own.shape[2]
        rows, count = slice(first, first + own.shape[1]), inputs.shape[:-1].numel()
        chosen = self._tokens is not None and len(self._tokens) == count
        tokens = self._tokens if chosen else None
        return ExpertCall(name, inputs, rows, tokens, self._total, chosen or count == self._total)
