"""Policies chosen from few samples in several ways, judged by a Taylor model of samples that none of them has seen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lightning_mpq import Budget, TaylorModel
from lightning_mpq.curvature.shrinkage import between_groups, shrinkage_intensity

from ...tools.results import Row
from .slices import Case, Slices
from .ways import WAYS

MORE = {"shrunk": "shrunk, ten times the samples", "additive": "additive, ten times the samples"}
"""Ways that the whole pool is chosen from by."""


def measure(case: Case, slices: Slices, above_least: Sequence[float]) -> Iterator[Row]:
    """Yield the loss of each way's policy on unseen samples over that of the additive policy, and what pairs there are.

    Every row has facts of its samples: the share of pairs of groups beyond three standard errors (of noise alone 0.27
    %), and the share of their squares that noise accounts for.

    Args:
        case: The network.
        slices: Its Taylor models.
        above_least: Budgets, in average bits above the least possible.
    """
    pool, judge = slices.of(0, case.pool), slices.of(case.pool, case.pool + case.judging)
    least = _least_bits(judge)
    keys = {"network": case.network, "rounding": case.rounding}
    for draw in range(case.draws):
        raw = case.few(slices, draw)
        facts = _facts(raw)
        for above in above_least:
            budget = Budget(average_bits=least + above)
            policies = {name: way(raw, budget) for name, way in WAYS.items()}
            policies |= {name: WAYS[way](pool, budget) for way, name in MORE.items()}
            simple = judge.predict(policies["additive"]).value
            for name, policy in policies.items():
                loss = judge.predict(policy).value
                yield {**keys, **facts, "draw": draw, "above": above, "way": name, "over_additive": loss / simple}
    yield {**keys, **_facts(pool), "draw": None, "above": None, "way": "pairs", "over_additive": None}


def _facts(model: TaylorModel) -> Row:
    noise = shrinkage_intensity(model)
    return {"samples": model.samples, "beyond_three_errors": beyond_three_errors(model), "noise": noise}


def beyond_three_errors(model: TaylorModel) -> float:
    """Return the share of pairs of candidates of different groups that are farther from zero than three errors."""
    assert model.curvature_error is not None
    between = between_groups(model)
    found = model.curvature[between].abs() > 3 * model.curvature_error[between]
    return float(found.double().mean())


def _least_bits(model: TaylorModel) -> float:
    """Return the average bits of the smallest policy."""
    weights = sum(group.weight_count for group in model.groups)
    starts: dict[str, int] = {}
    for candidate in model.candidates:
        starts[candidate.group] = min(starts.get(candidate.group, candidate.stored_bits), candidate.stored_bits)
    return sum(starts.values()) / weights
