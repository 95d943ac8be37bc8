"""What may be chosen: one (group, scheme) pair per candidate, with what it costs to store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..policy import WeightScheme
from .groups import LayerGroup, LayerGroups


@dataclass(frozen=True)
class Candidate:
    """One way of quantizing one group.

    Attributes:
        group: Name of the group.
        scheme: How its weights would be quantized.
        stored_bits: Bits it would occupy, scales and zero points included.
    """

    group: str
    scheme: WeightScheme
    stored_bits: int


def default_scheme(bits: int) -> WeightScheme:
    """Return the scheme that a width gets when the user names none.

    With few levels a grid without zero wastes none of them; from 4 bits on a zero level is worth having.

    Args:
        bits: Width, 2 to 8.

    Example:
        >>> default_scheme(3).grid, default_scheme(4).grid
        ('half', 'symmetric')
    """
    return WeightScheme(bits=bits, grid="half" if bits <= 3 else "symmetric")


def make_candidates(
    groups: LayerGroups | Sequence[LayerGroup],
    bits: Iterable[int] = range(2, 9),
    schemes: Iterable[WeightScheme] | Mapping[str, Iterable[WeightScheme]] | None = None,
) -> tuple[Candidate, ...]:
    """List every candidate of every group, in the order of groups, then of schemes.

    Args:
        groups: What `find_groups` returned.
        bits: Widths to offer with `default_scheme`; ignored if ``schemes`` is given.
        schemes: Schemes offered to all groups, or group name to the schemes offered to it.

    Returns:
        The candidates, with what each stores.

    Raises:
        ValueError: If a group is left without a candidate, a scheme stands twice, or a name is no group.

    Example:
        >>> from torch import nn
        >>> from lightning_mpq import find_groups
        >>> groups = find_groups(nn.Sequential(nn.Linear(4, 2)))
        >>> [candidate.scheme.bits for candidate in make_candidates(groups, bits=[2, 4])]
        [2, 4]
    """
    offered = [default_scheme(width) for width in sorted(set(bits))] if schemes is None else schemes
    if isinstance(offered, Mapping):
        per_group = {name: list(choice) for name, choice in offered.items()}
        if unknown := sorted(set(per_group) - {group.name for group in groups}):
            raise ValueError(
                f"schemes names {', '.join(unknown)}, which is no group; groups are "
                f"{', '.join(group.name for group in groups)}."
            )
    else:
        choice = list(offered)
        per_group = {group.name: choice for group in groups}
    found: list[Candidate] = []
    for group in groups:
        choice = per_group.get(group.name, [])
        if len(set(choice)) != len(choice):
            raise ValueError(f"A scheme is offered twice to the group {group.name!r}; offer each once.")
        allowed = [scheme for scheme in choice if scheme.bits in group.bits]
        if not allowed:
            raise ValueError(
                f"No candidate is left for the group {group.name!r}: the rules allow {list(group.bits)} bits, "
                f"offered are {sorted({scheme.bits for scheme in choice})}. Offer one of the former, or relax the "
                "rules."
            )
        found += [Candidate(group.name, scheme, group.stored_bits(scheme)) for scheme in allowed]
    return tuple(found)
