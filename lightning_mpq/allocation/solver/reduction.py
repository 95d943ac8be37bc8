"""From a Taylor model, its costs and the rules to plain arrays, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import InfeasibleBudgetError
from ...groups.choices import Choices
from ..costs import CostRow
from ..rules import Rules, allowed_candidates, tied_groups
from .problem import Array, Indices, Mask, Problem


@dataclass(frozen=True, eq=False)
class Reduction:
    """Choices without what rules and per-group limits forbid, groups that must be equal being one group.

    A candidate of such a group chooses one candidate in each of its members. With the incidence matrix M,
    ``a' = M'a``, ``G' = M'GM``, ``R' = RM``.

    Attributes:
        members: The candidates that each candidate of the reduced problem stands for.
        group: Group of each candidate, ascending from 0 without holes.
        bits: Width of each candidate.
        bounded: Names of the costs with a limit.
        rows: Their values for each candidate, [bounded, K].
        limits: What their sums may be at most.
        size: Stored bits of each candidate.
    """

    members: tuple[tuple[int, ...], ...]
    group: Indices
    bits: Indices
    bounded: tuple[str, ...]
    rows: Array
    limits: Array
    size: Array

    @classmethod
    def of(cls, choices: Choices, rows: Sequence[CostRow], rules: Rules) -> Reduction:
        """Merge tied groups, and drop what rules and per-group limits forbid.

        Args:
            choices: Groups and candidates.
            rows: All costs; those with a limit on their sum become rows.
            rules: What the policy must look like.

        Raises:
            ValueError: If rules or per-group limits leave a group nothing.
        """
        allowed = allowed_candidates(choices, rules) & _affordable_alone(choices, rows)
        order = {group.name: position for position, group in enumerate(choices.groups)}
        owner = np.array([order[c.group] for c in choices.candidates])
        members: list[tuple[int, ...]] = []
        group: list[int] = []
        for number, tied in enumerate(tied_groups(choices, rules)):
            together = _joint_choices(choices, tied, owner, allowed)
            members += together
            group += [number] * len(together)
        bounded = [row for row in rows if row.limit is not None and not row.per_group]
        values = np.array([row.values for row in bounded]).reshape(len(bounded), len(owner))
        size = next(row.values for row in rows if row.name == "bytes")
        return cls(
            members=tuple(members),
            group=np.array(group, dtype=np.int64),
            bits=np.array([choices.candidates[choice[0]].scheme.bits for choice in members], dtype=np.int64),
            bounded=tuple(row.name for row in bounded),
            rows=np.ascontiguousarray(_gather(values.T, members).T),
            limits=np.array([row.row_limit for row in bounded]),
            size=_gather(size, members),
        )

    def problem(self, gradient: Array, curvature: Array) -> Problem:
        """Return the problem on plain arrays.

        Args:
            gradient: a over all candidates.
            curvature: G over all candidates.
        """
        return Problem(
            gradient=_gather(gradient, self.members),
            curvature=_gather_both(curvature, self.members),
            group=self.group,
            rows=self.rows,
            limits=self.limits,
            size=self.size,
        )

    def indices(self, selection: Indices) -> list[int]:
        """Return the candidates of a selection, in the order of their groups."""
        return sorted(index for choice in selection for index in self.members[choice])

    def selection(self, indices: Sequence[int]) -> Indices | None:
        """Return the selection that chooses the given candidates; None if rules forbid it."""
        wanted = set(indices)
        chosen = [place for place, members in enumerate(self.members) if wanted.issuperset(members)]
        full = sum(len(self.members[place]) for place in chosen) == len(wanted)
        selection = np.array(chosen, dtype=np.int64)
        return selection if full and len(selection) == self.group[-1] + 1 else None

    def summed(self, values: Array) -> Array:
        """Return what each candidate costs, from the costs of all candidates that it stands for."""
        return np.array([values[list(choice)].sum() for choice in self.members])

    def least_sum(self, values: Array) -> float:
        """Return the least sum that one candidate of each group can have."""
        start = np.searchsorted(self.group, np.arange(self.group[-1] + 1))
        return float(np.minimum.reduceat(values, start).sum())


def _gather(values: Array, members: Sequence[tuple[int, ...]]) -> Array:
    """Return the sums of ``values`` (first axis: candidates) over the members of each choice."""
    if all(len(choice) == 1 for choice in members):
        return values[np.array([choice[0] for choice in members], dtype=np.int64)]
    flat = np.array([index for choice in members for index in choice], dtype=np.int64)
    starts = np.cumsum([0, *(len(choice) for choice in members[:-1])])
    summed: Array = np.add.reduceat(values[flat], starts, axis=0)
    return summed


def _gather_both(matrix: Array, members: Sequence[tuple[int, ...]]) -> Array:
    """Return the sums of a symmetric matrix over the members of each choice; the matrix itself where that is all."""
    if list(members) == [(index,) for index in range(len(matrix))]:
        return matrix
    if all(len(choice) == 1 for choice in members):
        kept = np.array([choice[0] for choice in members], dtype=np.int64)
        return matrix[np.ix_(kept, kept)]
    return _gather(_gather(matrix, members).T, members)


def _affordable_alone(choices: Choices, rows: Sequence[CostRow]) -> Mask:
    """Drop candidates that exceed a per-group limit by themselves.

    Raises:
        ValueError: If a group has no candidate within the limit; the least possible limit is named.
    """
    allowed = np.ones(len(choices.candidates), dtype=bool)
    owner = np.array([c.group for c in choices.candidates])
    for row in rows:
        if row.limit is None or not row.per_group:
            continue
        allowed &= row.values <= row.row_limit
        for group in choices.groups:
            if not allowed[owner == group.name].any():
                least = max(float(row.values[owner == g.name].min()) for g in choices.groups) / row.divisor
                most = max(float(row.values[owner == g.name].max()) for g in choices.groups) / row.divisor
                raise InfeasibleBudgetError(
                    f"The budget {row.name}={row.limit:g} is below the least possible value, {least:g} "
                    f"{row.unit} (group {group.name!r}; the most possible is {most:g}). Raise it or offer fewer bits."
                )
    return allowed


def _joint_choices(choices: Choices, tied: Sequence[int], owner: Indices, allowed: Mask) -> list[tuple[int, ...]]:
    """Return the choices that tied groups have together: equal schemes, or equal widths where those are unique.

    Raises:
        ValueError: If there are none.
    """
    offered = [np.flatnonzero((owner == group) & allowed) for group in tied]
    if len(tied) == 1:
        return [(int(index),) for index in offered[0]]
    schemes = choices.candidates

    def widths_of(index: np.integer[Any]) -> object:
        return schemes[index].scheme.bits, schemes[index].scheme.input

    by_width = all(len({widths_of(i) for i in mine}) == len(mine) for mine in offered)
    tables = [{(widths_of(i) if by_width else schemes[i].scheme): int(i) for i in mine} for mine in offered]
    common = [key for key in tables[0] if all(key in table for table in tables)]
    if not common:
        widths = {
            choices.groups[g].name: sorted({schemes[i].scheme.bits for i in mine})
            for g, mine in zip(tied, offered, strict=True)
        }
        raise ValueError(
            f"These groups must be equal, but the other rules leave them nothing in common: {widths}. Relax one rule."
        )
    return [tuple(table[key] for table in tables) for key in common]
