"""What a group may be given: widths that the rules leave it, blocks of columns, and how its inputs are quantized."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set

from torch import nn

from ..grids.base import ALL_BITS
from ..network.layer_kinds import kind_of, rows_and_columns
from ..tools.checks import shown
from ..tools.patterns import matching
from .layer_groups import LayerGroup

BLOCKS = (128, 64, 32)
"""Lengths of blocks of columns, the first that divides the columns of a wide Linear layer being offered."""
WIDE = 256
"""Columns from which a Linear layer is wide: one scale for so many weights has to reach for the largest of them."""


def allowed_bits(
    layers: Mapping[str, nn.Module],
    fixed: Mapping[str, int],
    least: Mapping[str, int],
    most: Mapping[str, int],
) -> dict[str, set[int]]:
    """Return layer -> widths that every rule allows."""
    allowed = {name: set(ALL_BITS) for name in layers}
    rules = (("fixed_bits", fixed, int.__eq__), ("min_bits", least, int.__ge__), ("max_bits", most, int.__le__))
    for rule, patterns, keeps in rules:
        for pattern, bits in patterns.items():
            if isinstance(bits, bool) or not isinstance(bits, int) or bits not in ALL_BITS:
                raise ValueError(f"{rule}[{pattern!r}] must be an integer from 2 to 8, got {shown(bits)}.")
            for name in matching(pattern, layers, rule):
                allowed[name] = {width for width in allowed[name] if keeps(width, bits)}
                if not allowed[name]:
                    raise ValueError(
                        f"{rule}[{pattern!r}] = {bits} contradicts an earlier rule: no width is left for {name!r}. "
                        "Relax one."
                    )
    return allowed


def make_group(
    name: str,
    names: Sequence[str],
    layers: Mapping[str, nn.Module],
    allowed: Mapping[str, set[int]],
    sites: Set[str],
) -> LayerGroup:
    """Return the group of some layers.

    Args:
        name: Its name.
        names: Names of its layers.
        layers: Name to layer.
        allowed: Layer name to the widths that the rules allow.
        sites: Names of the layers whose inputs can be quantized.

    Raises:
        ValueError: If no width is left.
    """
    bits = set.intersection(*(allowed[layer] for layer in names))
    if not bits:
        raise ValueError(
            f"The rules leave the group {name!r} no width that all its layers may take: {names}. Relax one."
        )
    distinct = {id(layers[layer].weight): rows_and_columns(layers[layer]) for layer in names}
    shapes = tuple(distinct.values())
    block = _block([layers[n] for n in names], shapes)
    inputs = ("tensor", "token") if all(isinstance(layers[n], nn.Linear) for n in names) else ("tensor",)
    known = inputs if sites >= set(names) else ()
    return LayerGroup(name, tuple(names), shapes, tuple(sorted(bits)), block, known)


def _block(layers: Sequence[nn.Module], shapes: Iterable[tuple[int, int]]) -> int | None:
    """Return the longest block that no row is too short for, or ends within; None unless rows multiply vectors."""
    operations = {kind.operation for layer in layers if (kind := kind_of(layer)) is not None}
    if "linear" not in operations or not operations <= {"linear", "lookup"}:
        return None
    columns = [count for _, count in shapes]
    if min(columns) < WIDE:
        return None
    return next((block for block in BLOCKS if not any(count % block for count in columns)), None)
