"""Why each group has its bits: what one step more or less would cost and save."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..tools.kinds import checked_kinds
from ..tools.patterns import matching
from .allocation import Allocation
from .preparation import Preparation


@dataclass(frozen=True)
class Step:
    """What happens if one group alone moves to its next smaller or larger candidate.

    Attributes:
        bits: Width it would have.
        loss: Change of the predicted loss.
        costs: Change of every cost that adds up.
        priced: Change of the loss plus the budget's prices times the change of bounded costs: negative
            would mean a bargain at the relaxed solution's prices.
        fits: Whether the budgets would still hold.
    """

    bits: int
    loss: float
    costs: Mapping[str, float]
    priced: float
    fits: bool


@dataclass(frozen=True)
class GroupReason:
    """One group's choice between its neighbours."""

    groups: tuple[str, ...]
    bits: int
    alone: float
    together: float
    narrower: Step | None
    wider: Step | None


@dataclass(frozen=True)
class Explanation:
    """Reasons of a policy.

    Attributes:
        groups: One entry a decision (tied groups share one): its width, the loss it adds ``alone`` and
            ``together`` with all others, and what the next ``narrower`` and ``wider`` candidate would change.
        pairs: Strongest interactions of the policy: (group, group, loss added; negative if errors cancel).
        prices: Loss that one more unit of each bounded cost would save.
        per_byte: Loss that one more byte would save, whichever bounds on stored bytes there are; None without any.
        bytes: Bytes of the whole model.
        unit: What losses are counted in.

    Example::

        explanation = mpq.explain(allocation)
        print(explanation.why("encoder.layer.3.*"))     # why these layers have their bits
        explanation.per_byte * 1e6                      # what one more megabyte would save, while it is a small step
    """

    groups: tuple[GroupReason, ...]
    pairs: tuple[tuple[str, str, float], ...]
    prices: Mapping[str, float]
    per_byte: float | None = None
    bytes: float = 0.0
    unit: str = ""

    def why(self, pattern: str) -> str:
        """Return why groups have their bits, a line each.

        Args:
            pattern: A group's name, a shell glob, or a regular expression after ``re:``.

        Raises:
            ValueError: If it matches no group.
        """
        names = [name for reason in self.groups for name in reason.groups]
        wanted = set(matching(pattern, names, "why", "group"))
        return "\n".join(_sentence(reason, self.unit) for reason in self.groups if wanted.intersection(reason.groups))

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        return {
            "groups": [asdict(reason) for reason in self.groups],
            "pairs": [list(pair) for pair in self.pairs],
            "prices": dict(self.prices),
            "per_byte": self.per_byte,
            "bytes": self.bytes,
            "unit": self.unit,
        }

    def __str__(self) -> str:
        """Return one sentence a group, then pairs and prices."""
        unit = f" {self.unit}" if self.unit else ""
        lines = [_sentence(reason, self.unit) for reason in self.groups]
        lines += [f"{a} and {b} together: {loss:+.3g}" for a, b, loss in self.pairs]
        lines += [f"One more unit of {name} would save about {price:.3g}{unit}." for name, price in self.prices.items()]
        if self.per_byte is not None:
            step, named = next((size, name) for size, name in _STEPS if size == 1 or size < self.bytes / 10)
            lines.append(f"One more {named} would save about {step * self.per_byte:.3g}{unit}.")
        return "\n".join(lines)


_STEPS = ((1e6, "megabyte"), (1e3, "kilobyte"), (1, "byte"))
"""Prices hold for small steps: a tenth of the model is none."""


def _sentence(reason: GroupReason, unit: str = "") -> str:
    """Return why a group has its bits, in one line."""
    adds = f"{reason.together:+.3g} ({reason.alone:+.3g} alone)" + (f" {unit}" if unit else "")
    parts = [f"{', '.join(reason.groups)}: {reason.bits} bits add {adds}"]
    for step in (reason.narrower, reason.wider):
        if step is not None:
            held = "" if step.fits else ", beyond the budget"
            saved = -step.costs.get("bytes", 0.0)
            bytes_text = f"saves {saved:.0f} bytes" if saved > 0 else f"takes {-saved:.0f} bytes"
            parts.append(f"{step.bits} bits: {step.loss:+.3g}, {bytes_text}{held}")
    return "; ".join(parts) + "."


@checked_kinds
def explain(allocation: Allocation, pairs: int = 10) -> Explanation:
    """Say why each group has its bits, and which pairs of groups interact most.

    Args:
        allocation: What `allocate` or `frontier` returned.
        pairs: How many pairs to list.

    Raises:
        ValueError: If the allocation does not carry the problem that it solves.
    """
    prepared = allocation.preparation
    if not isinstance(prepared, Preparation):
        raise ValueError(
            "There is no problem to explain this allocation by; use one that `allocate` or `frontier` made."
        )
    reduction, problem = prepared.reduction, prepared.problem
    selection = reduction.selection(prepared.taylor.indices(allocation.policy))
    if selection is None:
        raise ValueError("The allocation's policy breaks the rules of its problem; use one as it was made.")
    potential = problem.gradient + problem.curvature[:, selection].sum(axis=1)
    current = selection[problem.group]
    own = problem.curvature[np.arange(len(current)), current]
    change = potential - potential[current] + (problem.diagonal + problem.diagonal[current]) / 2 - own
    additive_rows = [row for row in prepared.rows if not row.per_group]
    sums = {row.name: reduction.summed(row.values) / row.divisor for row in additive_rows}
    room = problem.limits - problem.usage(selection)

    def step(candidate: int, chosen: int) -> Step:
        costs = {name: float(values[candidate] - values[chosen]) for name, values in sums.items()}
        priced = float(change[candidate]) + sum(allocation.prices.get(name, 0.0) * d for name, d in costs.items())
        fits = bool(np.all(problem.rows[:, candidate] - problem.rows[:, chosen] <= room))
        return Step(int(reduction.bits[candidate]), float(change[candidate]), costs, priced, fits)

    reasons = []
    names = [_names(prepared, int(chosen)) for chosen in selection]
    for group, chosen in enumerate(selection.tolist()):
        members = np.flatnonzero(problem.group == group)
        members = members[np.lexsort((members, problem.size[members]))]
        place = int(np.flatnonzero(members == chosen)[0])
        alone = float(problem.additive_cost[chosen])
        between = float(problem.curvature[chosen, selection].sum() - problem.diagonal[chosen])
        reasons.append(
            GroupReason(
                names[group],
                int(reduction.bits[chosen]),
                alone,
                alone + between,
                step(int(members[place - 1]), chosen) if place > 0 else None,
                step(int(members[place + 1]), chosen) if place + 1 < len(members) else None,
            )
        )
    block = problem.curvature[np.ix_(selection, selection)]
    first, second = np.triu_indices(len(selection), 1)
    order = np.argsort(-np.abs(block[first, second]), kind="stable")[:pairs]
    strongest = tuple(
        ("+".join(names[first[i]]), "+".join(names[second[i]]), float(block[first[i], second[i]])) for i in order
    )
    return Explanation(
        tuple(reasons),
        strongest,
        dict(allocation.prices),
        _per_byte(prepared, allocation),
        allocation.costs["bytes"],
        allocation.unit,
    )


def _per_byte(prepared: Preparation, allocation: Allocation) -> float | None:
    """Return the price of a byte: of all bounds on stored bytes together, since one more takes room in each."""
    bits = 8.0 / max(sum(group.weight_count for group in prepared.taylor.groups), 1)
    worth = {"average_bits": bits, "bytes": 1.0, "device_bytes": 1.0}
    found = [allocation.prices[name] * share for name, share in worth.items() if name in allocation.prices]
    return sum(found) if found else None


def _names(prepared: Preparation, candidate: int) -> tuple[str, ...]:
    """Return the groups that a candidate of the reduced problem decides."""
    return tuple(prepared.taylor.candidates[index].group for index in prepared.reduction.members[candidate])
