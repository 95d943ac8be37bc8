"""Everything that makes up for rounding, in its order: codes in sequence, then biases, then BatchNorm statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..inputs.quantizer import InputRange
from ..network.batchnorm import batchnorm_layers
from ..network.calibration import Calibration
from ..network.held_out import hold_out
from ..network.loss_change import BEYOND_CHANCE, LossChange, Losses, divergence_if_known
from ..options import RepairOptions
from ..policy import BitPolicy
from ..quantizers import QuantizedRows
from ..rounding.independent import round_policy
from ..rounding.kept_layers import KeptLayers
from ..rounding.rounded_weights import RoundedWeights
from ..rounding.sequential import round_sequentially
from ..tools.progress import Progress
from ..tools.warning import warn
from .batchnorm import (
    BatchNormStatistics,
    measure_batchnorm,
    reestimate_batchnorm,
    restore_statistics,
    save_statistics,
)
from .biases import correct_biases
from .output_means import OutputMeans, output_means

Step = Literal["biases", "batchnorm"]


class Repaired(NamedTuple):
    """What repair made of a model: it can be put into the same model again, packed in the same way.

    Attributes:
        biases: Layer name to its bias.
        statistics: Layer name to running statistics, as `save_statistics` returns them.
    """

    biases: dict[str, Tensor]
    statistics: dict[str, dict[str, Tensor]]


class Repair:
    """Brings biases and BatchNorm statistics of a quantized model in line with the float one.

    Made while the model is a float one: what is to be met is measured then. Biases come first, for statistics follow
    a shifted bias, while a bias shifted after them would make them wrong. Each step is taken back if it raises the loss
    on calibration data that it was not fitted to, and not tried again, for other policies either, if it raises it by
    more than chance explains.

    Attributes:
        statistics: BatchNorm statistics of the float model on the batches; None if they are not measured again.
        refused: Steps that were taken back when a model was repaired last.
        losses: Of the model that is being repaired, as it is after the last step; None where nothing judges it.
    """

    def __init__(
        self,
        calibration: Calibration,
        layers: Iterable[str],
        options: RepairOptions,
        judge: LossChange | None = None,
        *,
        judged: bool = True,
    ) -> None:
        """Measure the float model as far as the options ask for it.

        Args:
            calibration: The float model, left as it was, and its batches, not touched if nothing is to be repaired.
            layers: Layers that may be quantized: their biases are corrected.
            options: What is repaired.
            judge: Measures the loss on batches that are not among these; by default some of these are held out for
                the divergence, if that can be measured.
            judged: Whether steps are judged at all; not where that was done already.

        Raises:
            ValueError: If something is to be repaired and there is no batch.
        """
        self.statistics: Mapping[str, BatchNormStatistics] | None = None
        self.refused: tuple[Step, ...] = ()
        self.losses: Losses | None = None
        self._means: OutputMeans | None = None
        self._judge = judge
        self._harmful: set[Step] = set()
        model = calibration.model
        biases = corrects_biases(model, options) and next(calibration.filled(), None) is not None
        if judged and judge is None and (biases or reestimates(model, options)):
            fitted, judging = hold_out(calibration)
            self._judge = None if judging is None else divergence_if_known(judging)
            calibration = calibration if self._judge is None else fitted
        self._calibration = calibration
        if biases:
            self._means = output_means(model, calibration, layers)
        if reestimates(model, options):
            self.statistics = measure_batchnorm(model, calibration)

    @property
    def may_leave_statistics(self) -> bool:
        """Whether BatchNorm statistics are measured again, and put back where samples that judge say so."""
        return self.statistics is not None and self._judge is not None

    @property
    def names(self) -> tuple[Step, ...]:
        """What is repaired, in order."""
        biases = self._means is not None and bool(self._means.means)
        both: tuple[tuple[Step, bool], ...] = (("biases", biases), ("batchnorm", self.statistics is not None))
        return tuple(step for step, done in both if done)

    def steps(self, twin: nn.Module | None = None, before: Losses | None = None) -> Iterator[Step]:
        """Repair the model step by step, and yield the name of each step once it is done, or taken back.

        Args:
            twin: A copy of the model to be repaired instead.
            before: What the judge measures of the model as it is; measured if not given.
        """
        self.refused, self.losses = (), before
        calibration = self._calibration if twin is None else self._calibration.on(twin)
        judge = None if self._judge is None else self._judge.on(calibration.model)
        names = self.names
        tried = [step for step in names if step not in self._harmful]
        if judge is not None and tried and before is None:
            before = self.losses = judge.measure_each()
        for step in names:
            if step not in tried:
                self.refused = (*self.refused, step)
                yield step
                continue
            undo = self._step(step, calibration)
            if judge is not None and before is not None:
                after = judge.measure_each()
                change, error = after.minus(before)
                if change > 0:
                    undo()
                    self._refuse(step, before.mean(), change, error)
                else:
                    before = self.losses = after
            yield step

    def _step(self, step: Step, calibration: Calibration) -> Callable[[], None]:
        """Do a step; return what takes it back."""
        if step == "biases":
            assert self._means is not None
            return correct_biases(calibration.model, calibration, self._means).undo
        layers = batchnorm_layers(calibration.model)
        saved = save_statistics(layers)
        reestimate_batchnorm(calibration.model, calibration, self.statistics)
        return lambda: restore_statistics(layers, saved)

    def _refuse(self, step: Step, loss: float, change: float, error: float) -> None:
        self.refused = (*self.refused, step)
        if change > BEYOND_CHANCE * error:  # within chance the report says enough
            self._harmful.add(step)
            done = {"biases": "Correcting biases", "batchnorm": "Measuring BatchNorm statistics again"}[step]
            warn(
                f"{done} raises the loss on held-out calibration data from {loss:.3g} by {change:.2g} +- {error:.2g}, "
                "and is not done."
            )

    def apply(self, twin: nn.Module | None = None) -> tuple[Step, ...]:
        """Repair the model, or a copy of it; return what was done and not taken back."""
        steps = (*self.steps(twin),)
        return tuple(step for step in steps if step not in self.refused)

    def made(self) -> Repaired:
        """Return what the steps have made of the model."""
        biases = {name: bias.detach().clone() for name, bias in self._biases().items()}
        return Repaired(biases, save_statistics(batchnorm_layers(self._calibration.model)))

    def make_again(self, repaired: Repaired) -> None:
        """Put into the model what `made` returned when it was packed likewise."""
        with torch.no_grad():
            for name, bias in self._biases().items():
                bias.copy_(repaired.biases[name])
        restore_statistics(batchnorm_layers(self._calibration.model), repaired.statistics)

    def _biases(self) -> dict[str, Tensor]:
        """Return the biases that are corrected."""
        modules = dict(self._calibration.model.named_modules(remove_duplicate=False))
        found = {name: modules[name].bias for name in (self._means.means if self._means is not None else ())}
        return {name: bias for name, bias in found.items() if isinstance(bias, Tensor)}


def reestimates(model: nn.Module, options: RepairOptions) -> bool:
    """Tell whether BatchNorm statistics of this model are measured again."""
    return options.batchnorm and bool(batchnorm_layers(model))


def corrects_biases(model: nn.Module, options: RepairOptions) -> bool:
    """Tell whether biases of this model are corrected."""
    return not batchnorm_layers(model) if options.biases == "auto" else options.biases


def rounds_in_sequence(policy: BitPolicy, options: RepairOptions) -> bool:
    """Tell whether codes of this policy depend on the rounding of earlier layers."""
    return options.sequential and any(scheme.rounding == "second_order" for scheme in policy.weights().values())


def final_codes(
    calibration: Calibration,
    policy: BitPolicy,
    options: RepairOptions,
    rounded: RoundedWeights | None = None,
    ranges: Mapping[str, InputRange] | None = None,
    progress: Progress | None = None,
    kept: KeptLayers | None = None,
) -> Mapping[str, QuantizedRows]:
    """Return the codes to pack, by layer; none where a weight is rounded by itself.

    Args:
        calibration: The float model, left as it was, and its batches.
        policy: The policy.
        options: Whether to round in sequence, and whether for BatchNorm statistics that are measured again.
        rounded: The candidates' codes, if they are known.
        ranges: Layer name to the range of its inputs, where the policy quantizes them; found where they are needed if
            not given.
        progress: Called with the fraction done and a message.
        kept: Keeps layers that are rounded in sequence.

    Raises:
        ValueError: If a scheme is rounded by its inputs and there is no batch.
    """
    known = None if rounded is None else rounded.of_policy(policy)
    if rounds_in_sequence(policy, options):
        return round_sequentially(
            calibration.model,
            calibration,
            policy,
            rounded=known,
            ranges=ranges,
            reestimated=reestimates(calibration.model, options),
            progress=progress,
            kept=kept,
        )
    if known is None and any(scheme.needs_inputs for scheme in policy.weights().values()):
        return round_policy(calibration, policy)
    return known or {}
