"""What a report keeps of other budgets: a short frontier, uniform policies, and every candidate of the chosen one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import numpy as np

from ..allocation import Allocation, Budget, frontier
from ..allocation.preparation import Preparation
from ..curvature import TaylorModel
from ..errors import InfeasibleBudgetError
from ..options import SolverOptions
from ..policy import BitPolicy
from ..report.frontier_record import FrontierRecord, GroupCandidates, PolicyPoint
from .pair_blocks import pair_blocks, short

POINTS = 12
"""Budgets of the frontier, spread evenly in the logarithm of bits; each may take this part of the solver's time."""
PART_OF_THE_TIME = 1 / 50
MOST_CANDIDATES = 4000
"""Beyond it a frontier takes more than the seconds that a report may cost."""
_STRONGEST = 3


def frontier_record(
    taylor: TaylorModel, unshrunk: TaylorModel, allocation: Allocation, solver: SolverOptions
) -> FrontierRecord:
    """Solve for other budgets in a few seconds, and write down what every candidate would change.

    Args:
        taylor: The model that was solved.
        unshrunk: The model as it was measured.
        allocation: The chosen policy; its rules, and its bounds on other costs than the size, hold for all.
        solver: How bits are assigned.
    """
    chosen = _point(taylor, allocation, "chosen")
    points, note = [chosen], ""
    try:
        points += [each for each in _swept(taylor, allocation, solver) if each.choice != chosen.choice]
    except (InfeasibleBudgetError, _TooLarge) as error:
        note = str(error)
    schemes = dict[str, Mapping[str, Any]]()
    for candidate in taylor.candidates:
        schemes.setdefault(repr(candidate.scheme), {"name": str(candidate.scheme), **candidate.scheme.to_dict()})
    return FrontierRecord(
        schemes=tuple(schemes.values()),
        candidates=_candidates(taylor, allocation.policy, list(schemes)),
        points=tuple(sorted(points, key=lambda each: (each.stored_bytes, -each.predicted_loss))),
        others=tuple(_others(taylor, allocation)),
        tied=_tied(taylor, allocation),
        blocks=pair_blocks(unshrunk, allocation.policy),
        note=note,
    )


class _TooLarge(Exception):
    """A frontier would take longer than a report may."""


def _swept(taylor: TaylorModel, allocation: Allocation, solver: SolverOptions) -> Iterator[PolicyPoint]:
    """Return the best policies of other sizes, under the other bounds of the budget and its rules."""
    if len(taylor.candidates) > MOST_CANDIDATES:
        raise _TooLarge(
            f"With {len(taylor.candidates):,} candidates (more than {MOST_CANDIDATES:,}) other budgets are not solved "
            "for the report, since that takes minutes; lightning_mpq.frontier solves them."
        )
    weights = sum(group.weight_count for group in taylor.groups)
    sizes = [[each.stored_bits for each in members] for members in _by_group(taylor)]
    least, most = (sum(map(pick, sizes)) / weights for pick in (min, max))
    inner = np.geomspace(least, most, POINTS)[1:-1].tolist()
    of_size = ("average_bits", "bytes", "max_loss", "within_uniform")
    prepared = allocation.preparation
    assert isinstance(prepared, Preparation)
    kept = {name: value for name, value in vars(prepared.budget).items() if name not in of_size}
    swept = frontier(
        taylor,
        average_bits=[least * (1 + 1e-9), *inner, most, allocation.costs["average_bits"]],
        budget=_further(kept),
        rules=prepared.rules,
        solver=solver.solver,
        time_limit=solver.time_limit * PART_OF_THE_TIME,
        gap=max(solver.gap, 1e-2),
        seed=solver.seed,
    )
    return (_point(taylor, each, "frontier") for each in swept.points)


def _further(kept: Mapping[str, Any]) -> Budget | None:
    """Return a budget of bounds on other costs than the size; None if there are none."""
    try:
        return Budget(**kept)
    except ValueError:  # it bounds nothing
        return None


def _point(taylor: TaylorModel, allocation: Allocation, name: str) -> PolicyPoint:
    """Return an allocation as a point of the report."""
    found = _policy_point(taylor, allocation.policy, name)
    quadratic = allocation.objective == "quadratic" and allocation.minimised == "loss"
    return replace(
        found,
        lower_bound=allocation.lower_bound if quadratic else None,
        additive_loss=allocation.additive_loss,
    )


def _policy_point(taylor: TaylorModel, policy: BitPolicy, name: str) -> PolicyPoint:
    """Return any policy of the candidates as a point of the report."""
    indices = taylor.indices(policy)
    bits = sum(taylor.candidates[index].stored_bits for index in indices)
    prediction = taylor.predict(policy)
    return PolicyPoint(
        name=name,
        choice=tuple(index - start for index, start in zip(indices, _starts(taylor), strict=True)),
        average_bits=bits / sum(group.weight_count for group in taylor.groups),
        stored_bytes=_bytes(taylor, indices),
        predicted_loss=prediction.value,
        standard_error=prediction.standard_error,
    )


def _bytes(taylor: TaylorModel, indices: Sequence[int]) -> float:
    """Return the bytes of the whole model."""
    return taylor.float_bytes + sum(taylor.candidates[index].stored_bits for index in indices) / 8


def _others(taylor: TaylorModel, allocation: Allocation) -> Iterator[PolicyPoint]:
    """Return the policies of one width everywhere where all groups offer it, and the additive one."""
    starts = _starts(taylor)
    widths = sorted({candidate.scheme.bits for candidate in taylor.candidates})
    for bits in widths:
        first = [
            next((start + at for at, each in enumerate(members) if each.scheme.bits == bits), None)
            for start, members in zip(starts, _by_group(taylor), strict=True)
        ]
        if None not in first:
            policy = taylor.policy([index for index in first if index is not None])
            yield _policy_point(taylor, policy, f"uniform {bits} bits")
    if allocation.additive_policy is not None:
        yield _policy_point(taylor, allocation.additive_policy, "additive")


def _candidates(taylor: TaylorModel, policy: BitPolicy, schemes: Sequence[str]) -> tuple[GroupCandidates, ...]:
    """Return what each candidate stores and loses, alone and among the others as chosen."""
    chosen = np.array(taylor.indices(policy))
    curvature, gradient = taylor.curvature.numpy(), taylor.gradient.numpy()
    alone = gradient + curvature.diagonal() / 2
    block = curvature[np.ix_(chosen, chosen)]
    position = {scheme: at for at, scheme in enumerate(schemes)}
    rows = []
    for group, (start, members) in enumerate(zip(_starts(taylor), _by_group(taylor), strict=True)):
        own = np.arange(start, start + len(members))
        others = np.delete(chosen, group)
        among = alone[own] + curvature[np.ix_(own, others)].sum(axis=1)
        partners = np.argsort(-np.abs(np.where(np.arange(len(chosen)) == group, 0, block[group])), kind="stable")
        rows.append(
            GroupCandidates(
                schemes=tuple(position[repr(member.scheme)] for member in members),
                stored_bytes=tuple(member.stored_bits / 8 for member in members),
                alone=tuple(map(short, alone[own])),
                instead=tuple(map(short, among - among[chosen[group] - start])),
                pairs=tuple((int(at), short(block[group, at])) for at in partners[:_STRONGEST] if at != group),
            )
        )
    return tuple(rows)


def _tied(taylor: TaylorModel, allocation: Allocation) -> tuple[tuple[int, ...], ...]:
    """Return the groups that rules tie together, by position."""
    prepared = allocation.preparation
    if not isinstance(prepared, Preparation):
        return ()
    place = {group.name: at for at, group in enumerate(taylor.groups)}
    _, first = np.unique(prepared.reduction.group, return_index=True)
    members = (prepared.reduction.members[at] for at in first)
    together = (tuple(place[taylor.candidates[each].group] for each in joint) for joint in members)
    return tuple(positions for positions in together if len(positions) > 1)


def _by_group(taylor: TaylorModel) -> list[list[Any]]:
    found: dict[str, list[Any]] = {group.name: [] for group in taylor.groups}
    for candidate in taylor.candidates:
        found[candidate.group].append(candidate)
    return list(found.values())


def _starts(taylor: TaylorModel) -> list[int]:
    """Return the index of the first candidate of each group."""
    return [0, *accumulate(len(members) for members in _by_group(taylor)[:-1])]
