"""Layers that stand side by side in one module, and that runtimes compute as one: they then share a decision."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from torch import nn

from ..network.named_weights import named_layers
from ..tools.checks import shown

Fuse = Literal["vllm"] | Sequence[Sequence[str]]
"""Sets of names within a module, such as ``[("q_proj", "k_proj", "v_proj")]``, or those of a runtime."""
OF_VLLM = (("q_proj", "k_proj", "v_proj"), ("query", "key", "value"), ("gate_proj", "up_proj"), ("w1", "w3"))
"""Names of Linear layers that vLLM makes one of where they stand in one module (its ``packed_modules_mapping``)."""


def side_by_side(model: nn.Module, names: Iterable[Sequence[str]]) -> list[list[str]]:
    """Return the sets of layers, by their whole names, that have such names in one module; two layers at least.

    Example:
        >>> block = nn.ModuleDict({name: nn.Linear(2, 2) for name in ("q", "k", "v", "o")})
        >>> side_by_side(nn.ModuleList([block, nn.ReLU()]), [("q", "k", "v")])
        [['0.q', '0.k', '0.v']]
    """
    sets, found = list(names), dict[tuple[str, int], list[str]]()
    for layer in named_layers(model):
        parent, _, own = layer.rpartition(".")
        for number, together in enumerate(sets):
            if own in together:
                found.setdefault((parent, number), []).append(layer)
    return [layers for layers in found.values() if len(layers) > 1]


def fused(model: nn.Module, fuse: Fuse) -> list[list[str]]:
    """Return the sets of layers that share a decision because they are fused.

    Args:
        model: The model.
        fuse: What is.

    Raises:
        ValueError: If a set has no two layers side by side anywhere.
    """
    if fuse == "vllm":
        return side_by_side(model, OF_VLLM)
    for names in fuse:
        if not side_by_side(model, [names]):
            raise ValueError(
                f"fuse names {shown(list(names))}, and nowhere in {type(model).__name__} do two layers of these names "
                "stand in one module. Give the last parts of their names, such as ('q_proj', 'k_proj', 'v_proj')."
            )
    return side_by_side(model, fuse)


def check_fuse(fuse: object) -> None:
    """Refuse what is neither the name of a runtime nor a list of lists of names.

    Raises:
        ValueError: If it is not.
    """
    if fuse == "vllm":
        return
    if isinstance(fuse, str) or not isinstance(fuse, Sequence) or any(isinstance(names, str) for names in fuse):
        raise ValueError(
            f"fuse must be 'vllm' or a list of lists of names, such as [['gate_proj', 'up_proj']], got {shown(fuse)}."
        )
