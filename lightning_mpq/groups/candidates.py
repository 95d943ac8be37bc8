"""What may be chosen: one (group, scheme) pair per candidate, with what it costs to store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..grids.base import ALL_BITS
from ..grids.registry import DEFAULT_GRIDS, grid_named
from ..schemes import FLOAT, InputScheme, LayerScheme, Rounding, WeightScheme
from ..tools.checks import check_list, shown
from ..tools.kinds import checked_kinds
from .groups import LayerGroup, LayerGroups

OfferedInput = int | InputScheme | Literal["float"]
"""A width of inputs, a scheme of them, or ``"float"``."""


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

    Raises:
        ValueError: If one of them is no list, or holds what `WeightScheme` refuses.

    Example:
        >>> [str(scheme) for scheme in offered_schemes([2, 4], grids=["half", "nf4"])]
        ['2-bit half/channel', '4-bit half/channel', '4-bit nf4/channel']
    """
    _check_lists(bits, granularities, grids)
    clip: Any = "moment" if rounding == "second_order" else "mse"
    return tuple(
        WeightScheme(width, shared, grid, clip=clip, rounding=rounding)  # type: ignore[arg-type]
        for width in sorted(set(bits))
        for shared in granularities
        for grid in grids
        if width in grid_named(grid).bits or width not in ALL_BITS  # which WeightScheme refuses
    )


@checked_kinds
def make_candidates(
    groups: LayerGroups | Sequence[LayerGroup],
    bits: Iterable[int] = ALL_BITS,
    *,
    rounding: Rounding = "second_order",
    granularities: Iterable[str | int] | None = None,
    grids: Iterable[str] = DEFAULT_GRIDS,
    schemes: Iterable[WeightScheme] | Mapping[str, Iterable[WeightScheme]] | None = None,
    inputs: Iterable[OfferedInput] | None = None,
) -> tuple[Candidate, ...]:
    """List every candidate of every group, in the order of groups, then of schemes of weights, then of inputs.

    Args:
        groups: What `find_groups` returned.
        bits: Widths to offer.
        rounding: ``"second_order"`` or ``"nearest"``, see `WeightScheme`.
        granularities: What may share a scale: ``"channel"``, ``"tensor"``, or lengths of blocks of columns. None:
            channels, and for wide Linear layers blocks beside them (``LayerGroup.block``), at the cost of their scales.
        grids: Grids to offer; `round_candidates` keeps the best of them.
        schemes: Schemes offered to all groups, or group name to the schemes offered to it, instead of all the above.
        inputs: How inputs may be quantized, each way with every scheme of a weight: widths, schemes, or ``"float"``.
            Groups with a layer whose inputs cannot be quantized so (``LayerGroup.inputs``) keep theirs in float. None:
            all do.

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
        >>> [str(c.scheme) for c in make_candidates(groups, bits=[4], grids=["half"], inputs=[8, "float"])]
        ['4-bit half/channel', '4-bit half/channel, 8-bit inputs']
    """
    ways = offered_inputs(inputs)
    offered = schemes
    if offered is None:
        _check_lists(bits, granularities, grids)
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
        own = [way for way in ways if isinstance(way, str) or way.granularity in group.inputs] or [FLOAT]
        joint = [LayerScheme(scheme, way) for scheme in allowed for way in own]
        found += [Candidate(group.name, scheme, group.stored_bits(scheme)) for scheme in joint]
    return tuple(found)


def offered_inputs(inputs: Iterable[OfferedInput] | None) -> tuple[InputScheme | Literal["float"], ...]:
    """Return the schemes of inputs that are offered, each once: float first, then the widest.

    Raises:
        ValueError: If one is no width, no scheme and not ``"float"``.

    Example:
        >>> [str(way) for way in offered_inputs([4, 8, "float", 4])]
        ['float', '8-bit inputs', '4-bit inputs']
    """
    found: list[InputScheme | Literal["float"]] = []
    if isinstance(inputs, str) or (inputs is not None and not isinstance(inputs, Iterable)):
        raise ValueError(f"Expected inputs as a list of widths, InputSchemes or {FLOAT!r}, got {shown(inputs)}.")
    for way in (FLOAT,) if inputs is None else inputs:
        scheme = way if isinstance(way, (str, InputScheme)) else InputScheme(way)
        if isinstance(scheme, str) and scheme != FLOAT:
            raise ValueError(f"Expected inputs as widths, InputSchemes or {FLOAT!r}, got {shown(way)}.")
        found.append(scheme)
    if not found:
        raise ValueError(f"No way to treat inputs is offered; give inputs=[{FLOAT!r}] to leave them as they are.")
    return tuple(sorted(dict.fromkeys(found), key=lambda way: -32 if isinstance(way, str) else -way.bits))


def _check_lists(bits: object, granularities: object, grids: object) -> None:
    check_list("bits", bits, [2, 4, 8])
    if granularities is not None:
        check_list("granularities", granularities, ["channel", 64])
    check_list("grids", grids, ["symmetric"])


def _shared_by_default(group: LayerGroup) -> tuple[str | int, ...]:
    return ("channel",) if group.block is None else ("channel", group.block)
