"""Float, uniform, additive and chosen model measured side by side, and each group alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from math import floor
from typing import NamedTuple

from ..allocation import Allocation
from ..curvature import TaylorModel
from ..groups.groups import LayerGroups
from ..modules import stored_bytes
from ..modules.clipped_inputs import clipped_inputs
from ..policy import BitPolicy
from ..repair.batchnorm import measure_batchnorm, reestimate_batchnorm
from ..report.metric_values import MetricValues
from ..report.rows import GroupRow, ModelRow, RepairRow
from ..tools.progress import Progress
from .policy_evaluator import PolicyEvaluator
from .quantizer import RoundingOrder

_PASSES_FOR_GROUPS_ALONE = 4
Packing = Callable[[], AbstractContextManager[None]]
"""Packs and repairs the model when its ``with`` block begins."""


class Rows(NamedTuple):
    """What a comparison has measured, for the report."""

    models: tuple[ModelRow, ...]
    repair: tuple[RepairRow, ...]
    groups: tuple[GroupRow, ...]


@dataclass(frozen=True)
class Comparison:
    """Measures what becomes of a model under several policies.

    Attributes:
        evaluator: Where it is measured.
        groups: The groups of the model.
        taylor: Predicts what is measured.
        metrics: Measures the model as it is with the user's own metrics.
        reestimated: Whether the Taylor model predicts the loss after BatchNorm statistics are measured again.
    """

    evaluator: PolicyEvaluator
    groups: LayerGroups
    taylor: TaylorModel
    metrics: Callable[[], Mapping[str, float]]
    reestimated: bool = False

    def measure(self, allocation: Allocation, progress: Progress, packing: Packing | None = None) -> Rows:
        """Measure the float model, the policies to compare with, and of the chosen one each repair and group alone.

        Args:
            allocation: The chosen policy.
            progress: Called with how far that is.
            packing: Packs the chosen policy for good; by default the float model is left.
        """
        evaluator, chosen = self.evaluator, allocation.policy
        float_row, rows = self.float_row(), dict[BitPolicy, ModelRow]()
        others = compared_policies(self.taylor, allocation)
        for number, (name, other) in enumerate(others.items()):
            if other != chosen and other not in rows:
                progress(0.25 * number, f"measure the {name} policy")
                rows[other] = self.policy_row(name, other)
        progress(0.5, "measure what repair gains")
        evaluator.settle(chosen)
        evaluator.warn_if_independent(chosen)
        repair = self.repair_rows(chosen)
        progress(0.7, "measure each group alone")
        groups = self.groups_alone(chosen)
        progress(0.9, "quantize")
        rows[chosen] = self.policy_row("chosen", chosen, packing)
        kept = evaluator.as_packed(chosen).losses
        for other in rows:
            above, error = evaluator.as_packed(other).losses.above(kept)
            rows[other] = replace(rows[other], above_chosen=above, above_chosen_error=error)
        compared = (replace(rows[other], name=name) for name, other in others.items())
        return Rows((float_row, *compared, rows[chosen]), repair, groups)

    def repair_rows(self, policy: BitPolicy) -> tuple[RepairRow, ...]:
        """Return what each repair gains in each order of rounding; what is kept stands last."""
        evaluator, quantizer = self.evaluator, self.evaluator.quantizer
        orders: list[RoundingOrder] = ["independent"]
        if quantizer.tried_in_sequence(policy):
            orders.insert(1 if quantizer.order(policy) == "sequential" else 0, "sequential")
        return tuple(
            RepairRow(order, stage, found.mean(), found.fitted, found.refused)
            for order in orders
            for stage, found in zip(evaluator.stages, evaluator.measured(policy, order, evaluator.stages), strict=True)
        )

    def float_row(self) -> ModelRow:
        """Measure the float model."""
        total = stored_bytes(self.evaluator.quantizer.model).total
        weights = sum(group.weight_count for group in self.groups)
        bits = 8 * (total - self.groups.float_bytes - self.groups.unused_bytes) / weights
        metrics = MetricValues(self.metrics())
        return ModelRow("float", bits, total, 0.0, 0.0, 0.0, metrics=dict(metrics), intervals=metrics.intervals)

    def policy_row(self, name: str, policy: BitPolicy, packing: Packing | None = None) -> ModelRow:
        """Measure the model under a policy, and take it back unless it is packed for good.

        Its bytes are counted from what is really packed; the losses are those of the model that judging was done on.
        """
        evaluator, quantizer = self.evaluator, self.evaluator.quantizer
        frozen, _ = evaluator.measured(policy, "independent", [evaluator.stages[0], evaluator.stages[-1]])
        found = evaluator.as_packed(policy)
        with self._packed_for_a_while(policy) if packing is None else packing():
            stored, metrics = stored_bytes(quantizer.model), MetricValues(self.metrics())
            ranges = any(scheme.needs_range for scheme in policy.inputs().values()) or bool(policy.operands)
            held_out = None if quantizer.judge is None else quantizer.judge.calibration
            clipped = clipped_inputs(quantizer.model, held_out) if ranges and held_out is not None else {}
        return ModelRow(
            name=name,
            average_bits=8 * stored.packed / sum(group.weight_count for group in self.groups),
            stored_bytes=stored.total,
            predicted_loss=self.taylor.predict(policy).value,
            measured_loss=found.mean(),
            measured_frozen=frozen.mean(),
            fitted_loss=found.fitted,
            metrics=dict(metrics),
            intervals=metrics.intervals,
            clipped=clipped,
        )

    @contextmanager
    def _packed_for_a_while(self, policy: BitPolicy) -> Iterator[None]:
        with self.evaluator.quantizer.packed(policy):
            self.evaluator.repair(policy)
            yield

    def groups_alone(self, policy: BitPolicy) -> tuple[GroupRow, ...]:
        """Measure each group quantized alone beside what is predicted for it.

        Each is one more pass: on so many of the first batches that all groups cost about half as much as the profile.
        """
        chosen = self.taylor.indices(policy)
        block = self.taylor.curvature[chosen][:, chosen]
        gradient = self.taylor.gradient[chosen]
        share, alone = gradient + block.sum(1) / 2, gradient + block.diagonal() / 2
        quantizer, first = self.evaluator.quantizer, None
        calibration, statistics = quantizer.calibration, quantizer.repair.statistics
        if len(self.groups) > _PASSES_FOR_GROUPS_ALONE:
            count = sum(1 for _ in calibration.filled())
            first = max(1, _PASSES_FOR_GROUPS_ALONE * count // len(self.groups))
            calibration, statistics = calibration.first(first), None
        if self.reestimated and statistics is None:
            statistics = measure_batchnorm(quantizer.model, calibration)
        rows = []
        for position, (group, index) in enumerate(zip(self.taylor.groups, chosen, strict=True)):
            candidate = self.taylor.candidates[index]
            with quantizer.packed(BitPolicy({group.name: candidate.scheme}, {group.name: group.layers}), "independent"):
                if self.reestimated:
                    reestimate_batchnorm(quantizer.model, calibration, statistics)
                measured = self.evaluator.change.measure(first)
            rows.append(
                GroupRow(
                    group=group.name,
                    layers=group.layers,
                    bits=candidate.scheme.bits,
                    scheme=str(candidate.scheme),
                    weights=group.weight_count,
                    stored_bytes=-(-candidate.stored_bits // 8),
                    predicted_share=float(share[position]),
                    predicted_alone=float(alone[position]),
                    measured_alone=measured,
                )
            )
        return tuple(rows)


def compared_policies(taylor: TaylorModel, allocation: Allocation) -> dict[str, BitPolicy]:
    """Return the policies that the chosen one is compared with, by name."""
    uniform = uniform_policy(taylor, allocation.limits.get("average_bits", allocation.costs["average_bits"]))
    policies = {f"uniform {max(uniform.bits().values())} bits": uniform}
    if allocation.additive_policy is not None:
        policies["additive"] = allocation.additive_policy
    return policies


def uniform_policy(taylor: TaylorModel, average_bits: float) -> BitPolicy:
    """Return the policy with one width everywhere: the whole number nearest to ``average_bits``, halves upwards.

    A group that does not offer that width gets the nearest one that it offers; of several schemes of one
    width, the first.
    """
    width = floor(average_bits + 0.5)
    chosen: dict[str, tuple[tuple[int, int], int]] = {}
    for index, candidate in enumerate(taylor.candidates):
        distance = (abs(candidate.scheme.bits - width), -candidate.scheme.bits)
        if candidate.group not in chosen or distance < chosen[candidate.group][0]:
            chosen[candidate.group] = (distance, index)
    return taylor.policy([index for _, index in chosen.values()])
