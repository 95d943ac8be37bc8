"""The same program with one decision taken beforehand, solved again from the policy that is there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch

from ..curvature.taylor_model import TaylorModel
from ..policy import BitPolicy
from ..schemes import LayerScheme, WeightScheme
from ..tools.kinds import checked_kinds
from ..tools.patterns import matching
from .allocation import Allocation
from .fewest_bytes import fewest_bytes
from .preparation import Preparation
from .rules import Rules
from .solver.problem import Indices

_FLOAT_BYTES = 4
"""Of a weight that stays in float, where nobody says otherwise."""


@checked_kinds
def what_if(
    allocation: Allocation,
    *,
    keep_float: Iterable[str] = (),
    fixed: Mapping[str, int | WeightScheme | LayerScheme] | None = None,
    time_limit: float = 0.8,
    gap: float = 1e-3,
) -> Allocation:
    """Solve the program of an allocation again with some groups kept in float, or given a width, from its policy.

    Nothing is profiled. A group in float adds no loss, counts with 4 bytes a weight in ``bytes``, and not at all in
    averages over the quantized weights, in operations and latencies.

    Args:
        allocation: What `allocate` returned.
        keep_float: Patterns of groups that stay in float.
        fixed: Pattern to the width or scheme that its groups get.
        time_limit: Seconds for the search.
        gap: Relative gap that ends it.

    Returns:
        The policy of the other decisions, with its certificate; `changes` compares it with the one before.

    Raises:
        InfeasibleBudgetError: If no policy keeps the budget then.
        ValueError: If the allocation does not carry its problem, a pattern matches nothing, or no group is left.

    Example::

        other = mpq.what_if(allocation, keep_float=["head"])
        other.predicted_loss - allocation.predicted_loss        # what that costs, or gains
        mpq.changes(allocation.policy, other.policy)            # which other groups change for it
    """
    prepared = allocation.preparation
    if not isinstance(prepared, Preparation):
        raise ValueError("There is no problem to solve again; use an allocation as `allocate` made it.")
    names = [group.name for group in prepared.taylor.groups]
    floats = {name for pattern in keep_float for name in matching(pattern, names, "keep_float", "group")}
    rules = _without(prepared.rules, names, floats)
    rules = replace(rules, fixed={**rules.fixed, **(fixed or {})})
    again = Preparation.make(_in_float(prepared.taylor, floats), prepared.budget, rules)
    if prepared.budget.minimises_bytes:
        return fewest_bytes(again, time_limit=time_limit, gap=gap, reference=again.reference)
    if allocation.objective == "additive" or "pairs" in allocation.details:
        simple = again.solve(gap=min(gap, 1e-6), time_limit=time_limit, additive=True)
        return again.allocation(simple, simple.selection, "additive", details=dict(allocation.details))
    start = _start(again, allocation.policy)
    solution = again.solve(gap=gap, reference=again.reference, time_limit=time_limit, start=start)
    return again.allocation(solution, None, "quadratic")


@checked_kinds
def changes(before: BitPolicy, after: BitPolicy) -> dict[str, tuple[int | None, int | None]]:
    """Return the groups whose width differs, with both widths; None where a group is in float.

    Example:
        >>> changes(BitPolicy({"a": WeightScheme(3), "b": WeightScheme(4)}), BitPolicy({"a": WeightScheme(2)}))
        {'a': (3, 2), 'b': (4, None)}
    """
    first, second = before.bits(), after.bits()
    every = dict.fromkeys([*first, *second])
    return {name: (first.get(name), second.get(name)) for name in every if first.get(name) != second.get(name)}


def _in_float(taylor: TaylorModel, floats: set[str]) -> TaylorModel:
    """Return a Taylor model without the candidates of some groups, which count as bytes that stay."""
    if not floats:
        return taylor
    kept = [index for index, candidate in enumerate(taylor.candidates) if candidate.group not in floats]
    if not kept:
        raise ValueError("keep_float matches every group, so that nothing is left to decide.")
    rows = torch.tensor(kept)
    sums = {
        "blocks.weight": lambda part: part,
        "blocks.gradient": lambda part: part[:, rows],
        "blocks.curvature": lambda part: part[:, rows][:, :, rows],
    }
    known = taylor.sums or {}
    return replace(
        taylor,
        groups=tuple(group for group in taylor.groups if group.name not in floats),
        candidates=tuple(taylor.candidates[index] for index in kept),
        gradient=taylor.gradient[rows],
        curvature=taylor.curvature[rows][:, rows],
        gradient_error=None if taylor.gradient_error is None else taylor.gradient_error[rows],
        curvature_error=None if taylor.curvature_error is None else taylor.curvature_error[rows][:, rows],
        float_bytes=taylor.float_bytes
        + _FLOAT_BYTES * sum(group.weight_count for group in taylor.groups if group.name in floats),
        sums={name: part(known[name]) for name, part in sums.items() if name in known} or None,
    )


def _without(rules: Rules, names: list[str], floats: set[str]) -> Rules:
    """Return rules without the patterns that match nothing but groups in float."""

    def counts(pattern: str, where: str) -> bool:
        return not floats.issuperset(matching(pattern, names, where, "group"))

    kept: dict[str, Any] = {
        where: {pattern: value for pattern, value in getattr(rules, where).items() if counts(pattern, where)}
        for where in ("fixed", "min_bits", "max_bits", "min_input_bits", "max_input_bits")
    }
    equal = [[pattern for pattern in patterns if counts(pattern, "equal")] for patterns in rules.equal]
    return replace(rules, **kept, equal=[patterns for patterns in equal if patterns])


def _start(again: Preparation, policy: BitPolicy) -> Indices | None:
    """Return the selection of the policy before, where the rules still allow it; None if they do not."""
    own = {group.name: policy[group.name] for group in again.taylor.groups}
    return again.reduction.selection(again.taylor.indices(own))
