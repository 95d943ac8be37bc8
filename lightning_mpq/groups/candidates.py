"""What may be chosen: one (group, scheme) pair per candidate, with what it costs to store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..grids.base import ALL_BITS
from ..grids.registry import DEFAULT_GRIDS, grid_named
from ..schemes import LayerScheme, Rounding, WeightScheme
from .groups import LayerGroup, LayerGroups


@dataclass(frozen=True)
class Candidate:
    """One way of quantizing one group.

    Attributes:
        group: Name of the group.
        scheme: How its layers would be quantized; where only the scheme of their weights is given, inputs stay in
            float.
        stored_bits: Bits it would occupy, scales and zero points included.
    """

    group: str
    scheme: LayerScheme
    stored_bits: int

    def __post_init__(self) -> None:
        """Take the scheme of weights for that of layers."""
        object.__setattr__(self, "scheme", LayerScheme.of(self.scheme))


def offered_schemes(
    bits: Iterable[int] = ALL_BITS,
    rounding: Rounding = "second_order",
    granularities: Iterable[str | int] = ("channel",),
    grids: Iterable[str] = DEFAULT_GRIDS,
) -> tuple[WeightScheme, ...]:
    """Return the schemes of all combinations that there are.

    Args:
        bits: Widths; a grid without levels for one of them is left out there.
        rounding: ``"second_order"``: codes, clip range and grid are found on calibration data. ``"nearest"``: codes are
            the nearest ones, and the clip range is that of the least squared weight error.
        granularities: What may share a scale; see `WeightScheme`.
        grids: Grids to offer; `round_candidates` keeps the best of them for each group and width.

    Example:
        >>> [str(scheme) for scheme in offered_schemes([2, 4], grids=["half", "nf4"])]
        ['2-bit half/channel', '4-bit half/channel', '4-bit nf4/channel']
    """
    clip: Any = "moment" if rounding == "second_order" else "mse"
    return tuple(
        WeightScheme(width, shared, grid, clip=clip, rounding=rounding)  # type: ignore[arg-type]
        for width in sorted(set(bits))
        for shared in granularities
        for grid in grids
        if width in grid_named(grid).bits or width not in ALL_BITS  # which WeightScheme refuses
    )


def make_candidates(
    groups: LayerGroups | Sequence[LayerGroup],
    bits: Iterable[int] = ALL_BITS,
    *,
    rounding: Rounding = "second_order",
    granularities: Iterable[str | int] | None = None,
    grids: Iterable[str] = DEFAULT_GRIDS,
    schemes: Iterable[WeightScheme] | Mapping[str, Iterable[WeightScheme]] | None = None,
) -> tuple[Candidate, ...]:
    """List every candidate of every group, in the order of groups, then of schemes.

    Args:
        groups: What `find_groups` returned.
        bits: Widths to offer.
        rounding: ``"second_order"`` or ``"nearest"``, see `WeightScheme`.
        granularities: What may share a scale: ``"channel"``, ``"tensor"``, or lengths of blocks of columns. None:
            channels, and for wide Linear layers blocks beside them (``LayerGroup.block``), at the cost of their scales.
        grids: Grids to offer; `round_candidates` keeps the best of them.
        schemes: Schemes offered to all groups, or group name to the schemes offered to it, instead of all the above.

    Returns:
        The candidates, with what each stores.

    Raises:
        ValueError: If a group is left without a candidate, a scheme stands twice, or a name is no group.

    Example:
        >>> from torch import nn
        >>> from lightning_mpq import find_groups
        >>> groups = find_groups(nn.Sequential(nn.Linear(4, 2)))
        >>> [str(candidate.scheme) for candidate in make_candidates(groups, bits=[2, 4], grids=["half"])]
        ['2-bit half/channel', '4-bit half/channel']
    """
    offered = schemes
    if offered is None:
        bits, grids = tuple(bits), tuple(grids)
        shared = None if granularities is None else tuple(granularities)
        offered = {
            group.name: offered_schemes(bits, rounding, _shared_by_default(group) if shared is None else shared, grids)
            for group in groups
        }
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
        found += [Candidate(group.name, LayerScheme(scheme), group.stored_bits(scheme)) for scheme in allowed]
    return tuple(found)


def _shared_by_default(group: LayerGroup) -> tuple[str | int, ...]:
    return ("channel",) if group.block is None else ("channel", group.block)
