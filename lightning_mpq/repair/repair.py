"""Everything that makes up for rounding, in its order: codes in sequence, then biases, then BatchNorm statistics."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

from torch import nn

from ..network.batchnorm import batchnorm_layers
from ..network.calibration import Calibration
from ..options import RepairOptions
from ..policy import BitPolicy
from ..quantizers import QuantizedRows
from ..rounding.independent import round_policy
from ..rounding.rounded_weights import RoundedWeights
from ..rounding.sequential import round_sequentially
from ..tools.progress import Progress
from .batchnorm import BatchNormStatistics, measure_batchnorm, reestimate_batchnorm
from .biases import correct_biases
from .output_means import OutputMeans, output_means

Step = Literal["biases", "batchnorm"]


class Repair:
    """Brings biases and BatchNorm statistics of a quantized model in line with the float one.

    Made while the model is a float one: what is to be met is measured then. Biases come first, for statistics follow
    a shifted bias, while a bias shifted after them would make them wrong.

    Attributes:
        statistics: BatchNorm statistics of the float model on the batches; None if they are not measured again.
    """

    def __init__(self, calibration: Calibration, layers: Iterable[str], options: RepairOptions) -> None:
        """Measure the float model as far as the options ask for it.

        Args:
            calibration: The float model, left as it was, and its batches, not touched if nothing is to be repaired.
            layers: Layers that may be quantized: their biases are corrected.
            options: What is repaired.

        Raises:
            ValueError: If something is to be repaired and there is no batch.
        """
        self._calibration = calibration
        self._means: OutputMeans | None = None
        self.statistics: Mapping[str, BatchNormStatistics] | None = None
        model = calibration.model
        if corrects_biases(model, options) and next(calibration.filled(), None) is not None:
            self._means = output_means(model, calibration, layers)
        if reestimates(model, options):
            self.statistics = measure_batchnorm(model, calibration)

    @property
    def names(self) -> tuple[Step, ...]:
        """What is repaired, in order."""
        biases = self._means is not None and bool(self._means.means)
        both: tuple[tuple[Step, bool], ...] = (("biases", biases), ("batchnorm", self.statistics is not None))
        return tuple(step for step, done in both if done)

    def steps(self, twin: nn.Module | None = None) -> Iterator[Step]:
        """Repair the model step by step, and yield the name of each step once it is done.

        Args:
            twin: A copy of the model to be repaired instead.
        """
        calibration = self._calibration if twin is None else self._calibration.on(twin)
        if self._means is not None and self._means.means:
            correct_biases(calibration.model, calibration, self._means)
            yield "biases"
        if self.statistics is not None:
            reestimate_batchnorm(calibration.model, calibration, self.statistics)
            yield "batchnorm"

    def apply(self, twin: nn.Module | None = None) -> tuple[Step, ...]:
        """Repair the model, or a copy of it; return what was done."""
        return (*self.steps(twin),)


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
    progress: Progress | None = None,
) -> dict[str, QuantizedRows]:
    """Return the codes to pack, by layer; none where a weight is rounded by itself.

    Args:
        calibration: The float model, left as it was, and its batches.
        policy: The policy.
        options: Whether to round in sequence, and whether for BatchNorm statistics that are measured again.
        rounded: The candidates' codes, if they are known.
        progress: Called with the fraction done and a message.

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
            reestimated=reestimates(calibration.model, options),
            progress=progress,
        )
    if known is None and any(scheme.needs_inputs for scheme in policy.weights().values()):
        return round_policy(calibration, policy)
    return known or {}
