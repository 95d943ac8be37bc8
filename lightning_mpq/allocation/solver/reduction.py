"""From a Taylor model, its costs and the rules to plain arrays, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...curvature.taylor_model import TaylorModel
from ...errors import InfeasibleBudgetError
from ..costs import CostRow
from ..rules import Rules, allowed_candidates, tied_groups
from .problem import Array, Indices, Mask, Problem


@dataclass(frozen=True, eq=False)
class ReducedProblem:
    """The plain problem, and which candidates of the Taylor model each of its own stands for.

    Groups that must be equal are one group of the problem; a candidate of it chooses one candidate in each
    of its groups. With the incidence matrix M, ``a' = M'a``, ``G' = M'GM``, ``R' = RM``.

    Attributes:
        problem: The plain problem.
        members: Candidates of the Taylor model behind each candidate.
        bits: Width of each candidate, shape [K].
        bounded: Names of the costs behind the problem's rows.
    """

    problem: Problem
    members: tuple[tuple[int, ...], ...]
    bits: Indices
    bounded: tuple[str, ...]

    def indices(self, selection: Indices) -> list[int]:
        """Return the Taylor model's candidates of a selection, in the order of its groups."""
        return sorted(index for choice in selection for index in self.members[choice])

    def selection(self, indices: Sequence[int]) -> Indices | None:
        """Return the selection that chooses the given candidates of the Taylor model; None if rules forbid it."""
        wanted = set(indices)
        chosen = [place for place, members in enumerate(self.members) if wanted.issuperset(members)]
        selection = np.array(chosen, dtype=np.int64)
        full = sum(len(self.members[place]) for place in chosen) == len(wanted)
        return selection if full and len(selection) == self.problem.group_count else None


def reduce_problem(
    taylor: TaylorModel, rows: Sequence[CostRow], rules: Rules, gradient: Array, curvature: Array
) -> ReducedProblem:
    """Merge tied groups, drop what rules and per-group limits forbid, and hand over plain arrays.

    Args:
        taylor: Gives groups and candidates.
        rows: All costs; those with a limit become rows.
        rules: What the plan must look like.
        gradient: a, shape [K].
        curvature: G, shape [K, K].

    Raises:
        ValueError: If rules or per-group limits leave a group nothing.
    """
    allowed = allowed_candidates(taylor, rules) & _affordable_alone(taylor, rows)
    order = {group.name: position for position, group in enumerate(taylor.groups)}
    owner = np.array([order[c.group] for c in taylor.candidates])
    members: list[tuple[int, ...]] = []
    group: list[int] = []
    for number, tied in enumerate(tied_groups(taylor, rules)):
        choices = _joint_choices(taylor, tied, owner, allowed)
        members += choices
        group += [number] * len(choices)
    bits = np.array([taylor.candidates[choice[0]].scheme.bits for choice in members], dtype=np.int64)
    bounded = [row for row in rows if row.limit is not None and not row.per_group]
    values = np.array([row.values for row in bounded]).reshape(len(bounded), len(owner))
    size = next(row.values for row in rows if row.name == "bytes")
    problem = Problem(
        gradient=_gather(gradient, members),
        curvature=_gather(_gather(curvature, members).T, members),
        group=np.array(group, dtype=np.int64),
        rows=np.ascontiguousarray(_gather(values.T, members).T),
        limits=np.array([row.row_limit for row in bounded]),
        size=_gather(size, members),
    )
    return ReducedProblem(problem, tuple(members), bits, tuple(row.name for row in bounded))


def _gather(values: Array, members: Sequence[tuple[int, ...]]) -> Array:
    """Return the sums of ``values`` (first axis: candidates of the Taylor model) over the members of each choice."""
    if all(len(choice) == 1 for choice in members):
        return values[np.array([choice[0] for choice in members], dtype=np.int64)]
    flat = np.array([index for choice in members for index in choice], dtype=np.int64)
    starts = np.cumsum([0, *(len(choice) for choice in members[:-1])])
    summed: Array = np.add.reduceat(values[flat], starts, axis=0)
    return summed


def _affordable_alone(taylor: TaylorModel, rows: Sequence[CostRow]) -> Mask:
    """Drop candidates that exceed a per-group limit by themselves.

    Raises:
        ValueError: If a group has no candidate within the limit; the least possible limit is named.
    """
    allowed = np.ones(len(taylor.candidates), dtype=bool)
    owner = np.array([c.group for c in taylor.candidates])
    for row in rows:
        if row.limit is None or not row.per_group:
            continue
        allowed &= row.values <= row.row_limit
        for group in taylor.groups:
            if not allowed[owner == group.name].any():
                least = max(float(row.values[owner == g.name].min()) for g in taylor.groups) / row.divisor
                most = max(float(row.values[owner == g.name].max()) for g in taylor.groups) / row.divisor
                raise InfeasibleBudgetError(
                    f"The budget {row.name}={row.limit:g} is below the least possible value, {least:g} "
                    f"{row.unit} (group {group.name!r}; the most possible is {most:g}). Raise it or offer fewer bits."
                )
    return allowed


def _joint_choices(taylor: TaylorModel, tied: Sequence[int], owner: Indices, allowed: Mask) -> list[tuple[int, ...]]:
    """Return the choices that tied groups have together: equal schemes, or equal widths where those are unique.

    Raises:
        ValueError: If there are none.
    """
    offered = [np.flatnonzero((owner == group) & allowed) for group in tied]
    if len(tied) == 1:
        return [(int(index),) for index in offered[0]]
    schemes = taylor.candidates
    by_width = all(len({schemes[i].scheme.bits for i in mine}) == len(mine) for mine in offered)
    tables = [{(schemes[i].scheme.bits if by_width else schemes[i].scheme): int(i) for i in mine} for mine in offered]
    common = [key for key in tables[0] if all(key in table for table in tables)]
    if not common:
        widths = {
            taylor.groups[g].name: sorted({schemes[i].scheme.bits for i in mine})
            for g, mine in zip(tied, offered, strict=True)
        }
        raise ValueError(
            f"These groups must be equal, but the other rules leave them nothing in common: {widths}. Relax one rule."
        )
    return [tuple(table[key] for table in tables) for key in common]
