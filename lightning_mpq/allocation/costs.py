"""What every candidate costs, one row a cost, and the limits of a budget on them."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor, nan

import numpy as np

from ..groups.choices import Choices
from .budget import Budget
from .latency_table import LatencyTable
from .solver.problem import Array, Indices
from .workload import Workload


@dataclass(frozen=True, eq=False)
class CostRow:
    """One cost that adds up over groups: ``(offset + sum of values) / divisor``, in ``unit``.

    Attributes:
        name: Its name in results and messages.
        values: Cost of each candidate, shape [K]; whole numbers where the cost is counted.
        limit: What it may be at most, in ``unit``; None only reports it.
        offset: Part that no decision changes.
        divisor: What turns the sum into ``unit``.
        unit: Its unit, for messages.
        per_group: Whether the limit holds for each group alone instead of their sum.
    """

    name: str
    values: Array
    limit: float | None = None
    offset: float = 0.0
    divisor: float = 1.0
    unit: str = ""
    per_group: bool = False

    def of(self, selection: Indices) -> float:
        """Return the cost of a selection in ``unit``."""
        chosen = self.values[selection]
        total = float(chosen.max() if self.per_group else chosen.sum())
        return (self.offset + total) / self.divisor

    @property
    def row_limit(self) -> float:
        """The limit on the plain sum of ``values``.

        Counted costs are compared exactly: ``average_bits=3.1`` means 31/10, whatever its binary float is,
        and a limit read off another policy (a rounded quotient) admits that policy.
        Measured ones are allowed the rounding of their own sum.
        """
        assert self.limit is not None
        exact = Fraction(str(float(self.limit))) * Fraction(self.divisor) - Fraction(self.offset)
        if np.all(self.values == np.floor(self.values)):
            return float(floor(exact + abs(exact) * Fraction(1, 10**15)))
        return float(exact) + 1e-12 * max(abs(float(exact)), float(np.abs(self.values).sum()) * 1e-3)


def cost_rows(choices: Choices, budget: Budget | None = None) -> list[CostRow]:
    """Return the rows of every cost that is known: bits and bytes always, others where the budget defines them.

    Raises:
        ValueError: If counts or times are missing or not finite, or a forward pass is bounded that was not measured.
    """
    stored = np.array([float(candidate.stored_bits) for candidate in choices.candidates])
    weights = float(sum(group.weight_count for group in choices.groups))
    rows = [
        CostRow("average_bits", stored, divisor=max(weights, 1.0), unit="bits per weight"),
        CostRow("bytes", stored, offset=8.0 * choices.float_bytes, divisor=8.0, unit="bytes"),
        CostRow("largest_group_bytes", stored, divisor=8.0, unit="bytes", per_group=True),
    ]
    if budget is not None:
        if budget.needs_workload:
            raise ValueError(
                "device_bytes, bit_operations and mac_average_bits are counted from a forward pass: measure one by "
                "budget = lightning_mpq.modules.workload.measured(budget, model, batches, groups), or give macs="
                "{group: count} for the latter two."
            )
        if budget.needs_file_rest:
            raise ValueError(
                "file_bytes is counted from what a file holds beside candidates: measure that by budget = "
                "lightning_mpq.targets.with_file_rest(budget, target, model, groups, candidates, example_inputs)."
            )
        if budget.file_rest is not None:
            rows.append(CostRow("file_bytes", stored, offset=8.0 * budget.file_rest, divisor=8.0, unit="bytes"))
        if budget.device_bytes is not None and budget.workload is not None:
            rows.append(_device_row(choices, stored, budget.workload))
        if budget.macs is not None or budget.workload is not None:
            rows += _operation_rows(choices, budget)
        if isinstance(budget.latency_table, LatencyTable):
            milliseconds = np.array([budget.latency_table.milliseconds(c) for c in choices.candidates])
            rows.append(CostRow("latency", milliseconds, unit="ms"))
        for custom in budget.custom:
            by_name = {group.name: group for group in choices.groups}
            values = np.array([_number(custom.function(by_name[c.group], c.scheme)) for c in choices.candidates])
            if not np.isfinite(values).all():
                worst = choices.describe(int(np.flatnonzero(~np.isfinite(values))[0]))
                raise ValueError(
                    f"The cost {custom.name!r} is not finite at {worst}; its function must return a number for each "
                    "choice."
                )
            rows.append(CostRow(custom.name, values, limit=custom.limit))
        limits = {row.name: getattr(budget, row.name, None) for row in rows if row.limit is None}
        rows = [CostRow(**{**row.__dict__, "limit": limits.get(row.name, row.limit)}) for row in rows]
    if len({row.name for row in rows}) != len(rows):
        raise ValueError(f"Two costs share a name: {', '.join(row.name for row in rows)}. Rename the custom one.")
    return rows


def _number(value: object) -> float:
    """Return what a user's function has returned as a number; NaN if it is none."""
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return nan


def _device_row(choices: Choices, stored: Array, workload: Workload) -> CostRow:
    """Return the bytes in memory while the model runs."""
    kept = np.array([8.0 * ceil(workload.kept_by_kernels(candidate)) for candidate in choices.candidates])
    beside = ceil(workload.activation_bytes) + ceil(workload.cache_bytes)
    return CostRow(
        "device_bytes", stored + kept, offset=8.0 * (choices.float_bytes + beside), divisor=8.0, unit="bytes"
    )


def _operation_rows(choices: Choices, budget: Budget) -> list[CostRow]:
    """Return BOPs and MAC-weighted bits from the multiply-accumulates of each group."""
    counted = budget.workload if budget.macs is None else Workload(budget.macs)
    assert counted is not None
    try:
        macs = {group.name: float(counted.macs_of(group)) for group in choices.groups}
    except ValueError:
        if budget.bit_operations is None and budget.mac_average_bits is None and budget.macs is None:
            return []  # nobody asked for them
        raise
    bits = np.array([float(c.scheme.bits) for c in choices.candidates])
    per_candidate = np.array([macs[c.group] for c in choices.candidates])
    total = sum(macs.values())
    inputs = np.array(_input_bits(choices, budget))
    return [
        CostRow("bit_operations", per_candidate * bits * inputs, unit="BOPs"),
        CostRow("mac_average_bits", per_candidate * bits, divisor=max(total, 1e-300), unit="bits per MAC"),
    ]


def _input_bits(choices: Choices, budget: Budget) -> list[float]:
    """Return the bits of the inputs of each candidate."""
    own = [candidate.scheme.input_bits for candidate in choices.candidates]
    in_float = budget.activation_bits or (8 if all(bits is None for bits in own) else 32)
    return [float(in_float if bits is None else bits) for bits in own]
