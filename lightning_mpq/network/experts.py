"""Experts whose weights are fused to tensors [E, out, in] or [E, in, out], and which of them each token meets.

Such a module multiplies the tokens of one expert at a time with a slice of the weight (`F.linear(hidden[tokens],
weight[expert])`, `hidden[tokens] @ weight[expert]`), or as many for each expert with all of it (`torch.bmm`). The slice
says which rows of the weight were used, the indexing before it which tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..tools.attributes import shadowed
from .products import product_of

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
    """Return the names of a module's weights [E, ...] of three dimensions, with E what it calls a number of experts.

    Example:
        >>> class Experts(nn.Module): ...
        >>> experts = Experts()
        >>> experts.num_experts, experts.up = 2, nn.Parameter(torch.zeros(2, 6, 4))
        >>> expert_weights(experts)
        ['up']
    """
    return [name for name in _fused_shapes(module) if module._parameters[name] is not None]


def _fused_shapes(module: nn.Module) -> dict[str, torch.Size]:
    """Return the shapes of a module's fused weights by name, packed ones too."""
    if type(module).__module__.startswith("torch."):
        return {}
    counts = {value for name, value in vars(module).items() if "expert" in name.lower() and isinstance(value, int)}
    shapes = {
        name: getattr(module._modules.get(name), "weight_shape", torch.Size()) if own is None else own.shape
        for name, own in module._parameters.items()
    }
    return {name: shape for name, shape in shapes.items() if len(shape) == 3 and shape[0] in counts and shape[0] > 1}


def is_transposed(module: nn.Module) -> bool:
    """Tell whether a module keeps its experts' weights as [E, in, out].

    `transformers` says so of most modules, by ``is_transposed``. Of others it is seen where one weight makes what the
    next one takes, as gate_up_proj and down_proj do: what comes out of the last is as wide as what goes into the first.

    Example:
        >>> class Experts(nn.Module): ...
        >>> experts = Experts()
        >>> experts.num_experts = 2
        >>> experts.up, experts.down = nn.Parameter(torch.zeros(2, 4, 12)), nn.Parameter(torch.zeros(2, 6, 4))
        >>> is_transposed(experts)
        True
    """
    said = getattr(module, "is_transposed", None)
    if isinstance(said, bool):
        return said
    shapes = [tuple(shape[1:]) for shape in _fused_shapes(module).values()]
    if len(shapes) < 2:
        return False
    (a, b), (c, d) = shapes[0], shapes[-1]
    return not _chained(inputs=b, inner=a, outputs=c, of_inner=d) and _chained(inputs=a, inner=b, outputs=d, of_inner=c)


def _chained(*, inputs: int, inner: int, outputs: int, of_inner: int) -> bool:
    """Tell whether two layers can follow each other, with a gate of half of what the first returns or without."""
    return inputs == outputs and inner in (of_inner, 2 * of_inner)


@contextmanager
def experts_watched(owner: nn.Module, weights: Mapping[str, Tensor], on_call: OnExpert) -> Iterator[None]:
    """Report every product of tokens with the weight of an expert while the context lasts.

    Args:
        owner: The module.
        weights: Any names to its weights.
        on_call: Called with each product and its output; what it returns takes the output's place.
    """
    forward, transposed = owner.forward, is_transposed(owner)

    def watched_forward(*args: Any, **kwargs: Any) -> Any:
        tokens = args[0] if args else next(iter(kwargs.values()))
        with _ExpertProducts(weights, transposed, tokens.shape[:-1].numel(), on_call):
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

    def __init__(self, weights: Mapping[str, Tensor], transposed: bool, total: int, on_call: OnExpert) -> None:
        super().__init__()
        self._rows = {name: own if not transposed else own.mT for name, own in weights.items()}  # [E, out, in]
        self._weights, self._total, self._on_call = weights, total, on_call
        self._tokens: Tensor | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func is Tensor.__getitem__:
            values, index = args
            whole = isinstance(index, Tensor) and index.dim() == 1 and not index.is_floating_point()
            if whole and index.dtype != torch.bool and len(values) == self._total:
                self._tokens = index
        elif (product := product_of(func, args, kwargs or {})) is not None:
            return self._seen(*product, output)
        return output

    def _seen(self, inputs: Tensor, weight: Tensor, output: Tensor) -> Tensor:
        """Report a product with the weight, [out, in] or [E, out, in], if it is one of ours or a slice of one."""
        for name, own in self._weights.items():
            rows = self._rows[name]
            if own is not weight and own is not weight._base:
                continue
            if weight.shape == rows.shape and weight.stride() == rows.stride() and inputs.dim() == 3:
                calls = (ExpertCall(name, x, self._slice(name, e), None, len(x), True) for e, x in enumerate(inputs))
                return torch.stack([self._on_call(call, y) for call, y in zip(calls, output, strict=True)])
            if weight.shape == rows.shape[1:] and weight.stride() == rows.stride()[1:]:
                return self._on_call(self._call(name, inputs, weight, own), output)
        return output

    def _call(self, name: str, inputs: Tensor, weight: Tensor, own: Tensor) -> ExpertCall:
        expert = (weight.storage_offset() - own.storage_offset()) // own.stride(0)
        count = inputs.shape[:-1].numel()
        chosen = self._tokens is not None and len(self._tokens) == count
        tokens = self._tokens if chosen else None
        known = chosen or count == self._total
        return ExpertCall(name, inputs, self._slice(name, expert), tokens, self._total, known)

    def _slice(self, name: str, expert: int) -> slice:
        """Return which rows of a weight, seen as one matrix, are those of an expert."""
        height = self._rows[name].shape[1]
        return slice(expert * height, (expert + 1) * height)
