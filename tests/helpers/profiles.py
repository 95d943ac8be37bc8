"""The steps with nothing done on top: weights rounded to nearest, statistics frozen, nothing shrunk."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from lightning_mpq.curvature import TaylorModel, profile
from lightning_mpq.groups.candidates import Candidate, make_candidates
from lightning_mpq.groups.groups import LayerGroup, LayerGroups, find_groups
from lightning_mpq.schemes import WeightScheme

ALL_BITS = range(2, 9)


def nearest_scheme(bits: int) -> WeightScheme:
    """Round to nearest, on a grid that is fit for the width: with few levels one without zero."""
    return WeightScheme(bits, grid="half" if bits <= 3 else "symmetric")


def nearest_candidates(
    groups: LayerGroups | Sequence[LayerGroup], bits: Iterable[int] = ALL_BITS
) -> tuple[Candidate, ...]:
    return make_candidates(groups, schemes=[nearest_scheme(width) for width in sorted(set(bits))])


def plain_profile(
    model: nn.Module,
    batches: Any,
    *,
    groups: Any = None,
    bits: Iterable[int] = ALL_BITS,
    candidates: Any = None,
    rounded: Any = None,
    **settings: Any,
) -> TaylorModel:
    if candidates is None and rounded is None:
        groups = find_groups(model) if groups is None else groups
        candidates = nearest_candidates(groups, bits)
    settings = {"statistics": "frozen", "shrink": False} | settings
    return profile(model, batches, groups=groups, candidates=candidates, rounded=rounded, **settings)
