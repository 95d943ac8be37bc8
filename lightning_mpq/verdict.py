"""The verdict: float, uniform, additive and chosen model measured side by side, and each group alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import floor
from typing import Any, NamedTuple

from torch import nn

from .allocation import Allocation
from .calling import ForwardFn
from .correction import measure_batchnorm, reestimate_batchnorm
from .curvature import Likelihood, TaylorModel
from .curvature.evaluator import LossFn
from .groups import LayerGroups
from .modules import stored_bytes
from .options import RepairOptions
from .policy import BitPolicy
from .quantize import temporarily_packed
from .quantizers import QuantizedRows
from .repair import Repair, final_codes, rounds_in_sequence
from .report import GroupRow, ModelRow, RepairRow
from .report.measure import LossChange
from .rounded_weights import RoundedWeights
from .staged_work import Progress

_PASSES_FOR_GROUPS_ALONE = 8


class Rows(NamedTuple):
    """What a verdict has measured, for the report."""

    models: list[ModelRow]
    repair: tuple[RepairRow, ...]
    groups: tuple[GroupRow, ...]


@dataclass
class Verdict:
    """Measures what becomes of a model under several policies; made while the model is still a float one.

    Attributes:
        model: The model; back as it was after every call.
        batches: Calibration batches.
        groups: Its groups.
        taylor: Predicts what is measured.
        evaluate: Measures the model as it is with the user's own metrics.
        forward_fn: ``(model, batch) -> outputs``.
        loss_fn: ``(model, batch) -> scalar``.
        likelihood: What the outputs mean; None to guess.
        options: What is repaired behind quantized weights.
        reestimated: Whether the Taylor model predicts the loss after that.
        rounded: The rounded weights that were profiled; None if all are rounded to nearest.
    """

    model: nn.Module
    batches: Sequence[Any]
    groups: LayerGroups
    taylor: TaylorModel
    evaluate: Callable[[], Mapping[str, float]]
    forward_fn: ForwardFn | None = None
    loss_fn: LossFn | None = None
    likelihood: Likelihood | None = None
    options: RepairOptions = field(default_factory=RepairOptions)
    reestimated: bool = False
    rounded: RoundedWeights | None = None

    def __post_init__(self) -> None:
        """Keep the float model's loss, which later measurements compare with."""
        changes = partial(
            LossChange,
            self.model,
            loss=self.taylor.loss,
            likelihood=self.likelihood,
            forward_fn=self.forward_fn,
            loss_fn=self.loss_fn,
        )
        # Each group alone is one more pass: on so many batches that all groups cost about as much as the profile.
        self._few = self.batches[: max(1, _PASSES_FOR_GROUPS_ALONE * len(self.batches) // len(self.groups))]
        self._change, self._change_of_group = changes(self.batches), changes(self._few)
        layers = [layer for group in self.groups for layer in group.layers]
        self.repair = Repair(self.model, self.batches, layers, self.options, self.forward_fn)
        self._codes: dict[str, dict[str, QuantizedRows]] = {}
        self._frozen: dict[str, float] = {}
        if self.reestimated:
            self._statistics_of_few = measure_batchnorm(self.model, self._few, self.forward_fn)

    def compare(self, allocation: Allocation, tell: Progress) -> Rows:
        """Measure the float model, the plans to compare with, and of the chosen plan each repair and group alone.

        Args:
            allocation: The chosen plan; its own row is left to the caller.
            tell: Told how far that is.
        """
        rows = [self.float_row()]
        for number, (name, other) in enumerate(compared_policies(self.taylor, allocation).items()):
            tell(0.25 * number, f"measure the {name}")
            rows.append(self.trial(name, other))
        tell(0.5, "measure what repair gains")
        repair = self.repair_rows(allocation.policy)
        tell(0.75, "measure each group alone")
        return Rows(rows, repair, self.groups_alone(allocation.policy))

    def float_row(self) -> ModelRow:
        """Measure the float model."""
        total = stored_bytes(self.model).total
        weights = sum(group.weight_count for group in self.groups)
        bits = 8 * (total - self.groups.float_bytes) / weights
        return ModelRow("float", bits, total, 0.0, 0.0, 0.0, dict(self.evaluate()))

    def trial(self, name: str, policy: BitPolicy) -> ModelRow:
        """Measure the model under a policy, before and after repair, and take the policy back."""
        key = policy.to_json()
        if key not in self._frozen:
            with temporarily_packed(self.model, policy, self.profiled_codes(policy)):
                self._frozen[key] = self.loss_change()
        with temporarily_packed(self.model, policy, self.codes(policy)):
            self.repair.apply()
            return self.row(name, policy)

    def profiled_codes(self, policy: BitPolicy) -> dict[str, QuantizedRows]:
        """Return the codes that were profiled; none where rounding needs nothing but the weight."""
        return {} if self.rounded is None else self.rounded.of_policy(policy)

    def codes(self, policy: BitPolicy) -> dict[str, QuantizedRows]:
        """Return the codes to pack, rounded in sequence if that was asked for; kept, so that asking again is free."""
        key = policy.to_json()
        if key not in self._codes:
            self._codes[key] = final_codes(
                self.model, self.batches, policy, self.options, self.rounded, self.forward_fn
            )
        return self._codes[key]

    def repair_rows(self, policy: BitPolicy) -> tuple[RepairRow, ...]:
        """Measure what each step of repair gains, with the codes that were profiled and with those to be packed."""
        ways = {"by float inputs": self.profiled_codes}
        if rounds_in_sequence(policy, self.options):
            ways["in sequence"] = self.codes
        rows = []
        for rounding, codes in ways.items():
            with temporarily_packed(self.model, policy, codes(policy)):
                rows.append(RepairRow(rounding, (), self.loss_change()))
                for step in self.repair.steps():
                    rows.append(RepairRow(rounding, (*rows[-1].repaired, step), self.loss_change()))
        self._frozen[policy.to_json()] = rows[0].measured_loss
        return tuple(rows)

    def loss_change(self) -> float:
        """Return the change of the loss of the model as it is."""
        return self._change.measure()

    def row(self, name: str, policy: BitPolicy) -> ModelRow:
        """Measure the packed model as it is; its bytes are counted from what is really packed.

        Args:
            name: Name of the row.
            policy: The policy behind.
        """
        stored = stored_bytes(self.model)
        return ModelRow(
            name=name,
            average_bits=8 * stored.packed / sum(group.weight_count for group in self.groups),
            stored_bytes=stored.total,
            predicted_loss=self.taylor.predict(policy).value,
            measured_loss=self.loss_change(),
            measured_frozen=self._frozen.get(policy.to_json()),
            metrics=dict(self.evaluate()),
        )

    def groups_alone(self, policy: BitPolicy) -> tuple[GroupRow, ...]:
        """Measure each group quantized alone beside what is predicted for it, on the first batches."""
        chosen = self.taylor.indices(policy)
        block = self.taylor.curvature[chosen][:, chosen]
        gradient = self.taylor.gradient[chosen]
        share, alone = gradient + block.sum(1) / 2, gradient + block.diagonal() / 2
        rows = []
        for position, (group, index) in enumerate(zip(self.taylor.groups, chosen, strict=True)):
            candidate = self.taylor.candidates[index]
            single = BitPolicy({group.name: candidate.scheme}, {group.name: group.layers})
            with temporarily_packed(self.model, single, self.profiled_codes(single)):
                if self.reestimated:
                    reestimate_batchnorm(self.model, self._few, self.forward_fn, self._statistics_of_few)
                measured = self._change_of_group.measure()
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
    """Return the plans that the chosen one is compared with, by name."""
    uniform = uniform_policy(taylor, allocation.limits.get("average_bits", allocation.costs["average_bits"]))
    plans = {f"uniform {max(uniform.bits().values())} bits": uniform}
    if allocation.additive_policy is not None:
        plans["additive plan"] = allocation.additive_policy
    return plans


def uniform_policy(taylor: TaylorModel, average_bits: float) -> BitPolicy:
    """Return the plan with one width everywhere: the whole number nearest to ``average_bits``, halves upwards.

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
