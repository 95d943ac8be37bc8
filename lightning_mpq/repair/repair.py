"""Everything that makes up for rounding, in its order: codes in sequence, then biases, then BatchNorm statistics."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import nn

from ..network.batchnorm import batchnorm_layers
from ..network.forward import ForwardFn
from ..options import RepairOptions
from ..policy import BitPolicy
from ..quantizers import QuantizedRows
from ..rounding.independent import round_policy
from ..rounding.rounded_weights import RoundedWeights
from ..rounding.sequential import round_sequentially
from ..tools.progress import Progress
from .batchnorm import measure_batchnorm, reestimate_batchnorm
from .biases import correct_biases
from .output_means import output_means


class Repair:
    """Brings biases and BatchNorm statistics of a quantized model in line with the float one.

    Made while the model is a float one: what is to be met is measured then. Biases come first, for statistics follow
    a shifted bias, while a bias shifted behind them would put them out.

    Attributes:
        statistics: BatchNorm statistics of the float model on the batches; None if they are not measured again.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Any],
        layers: Iterable[str],
        options: RepairOptions,
        forward_fn: ForwardFn | None = None,
    ) -> None:
        """Measure the float model as far as the options ask for it.

        Args:
            model: The float model, left as it was.
            batches: Calibration batches; not touched if nothing is to be repaired.
            layers: Layers that may be quantized: their biases are corrected.
            options: What is repaired.
            forward_fn: ``(model, batch) -> outputs``; by default the model is called on the batch's inputs.

        Raises:
            ValueError: If something is to be repaired and there is no batch.
        """
        self._model, self._batches, self._forward_fn = model, batches, forward_fn
        self._means, self.statistics = None, None
        if corrects_biases(model, options) and len(batches):
            self._means = output_means(model, batches, layers, forward_fn)
        if reestimates(model, options):
            self.statistics = measure_batchnorm(model, batches, forward_fn)

    @property
    def names(self) -> tuple[str, ...]:
        """What is repaired, in order."""
        biases = self._means is not None and bool(self._means.means)
        return ("biases",) * biases + ("BatchNorm statistics",) * (self.statistics is not None)

    def of(self, twin: nn.Module) -> Repair:
        """Return the same for a copy of the model; nothing is measured again."""
        found = copy.copy(self)
        found._model = twin
        return found

    def steps(self) -> Iterator[str]:
        """Repair the model step by step, and yield the name of each step once it is done."""
        if self._means is not None and self._means.means:
            correct_biases(self._model, self._batches, self._means, self._forward_fn)
            yield "biases"
        if self.statistics is not None:
            reestimate_batchnorm(self._model, self._batches, self._forward_fn, self.statistics)
            yield "BatchNorm statistics"

    def apply(self) -> tuple[str, ...]:
        """Repair the model; return what was done."""
        return tuple(self.steps())


def reestimates(model: nn.Module, options: RepairOptions) -> bool:
    """Tell whether BatchNorm statistics of this model are measured again."""
    return options.batchnorm and bool(batchnorm_layers(model))


def corrects_biases(model: nn.Module, options: RepairOptions) -> bool:
    """Tell whether biases of this model are corrected."""
    return not batchnorm_layers(model) if options.biases == "auto" else options.biases


def rounds_in_sequence(policy: BitPolicy, options: RepairOptions) -> bool:
    """Tell whether codes of this policy depend on the rounding of earlier layers."""
    return options.sequential and any(scheme.rounding == "second_order" for scheme in policy.values())


def final_codes(
    model: nn.Module,
    batches: Sequence[Any],
    policy: BitPolicy,
    options: RepairOptions,
    rounded: RoundedWeights | None = None,
    forward_fn: ForwardFn | None = None,
    progress: Progress | None = None,
) -> dict[str, QuantizedRows]:
    """Return the codes to pack, by layer; none where a weight is rounded by itself.

    Args:
        model: The float model, left as it was.
        batches: Calibration batches.
        policy: The policy.
        options: Whether to round in sequence, and whether for BatchNorm statistics that are measured again.
        rounded: The candidates' codes, if they are known.
        forward_fn: ``(model, batch) -> outputs``.
        progress: Called with the fraction done and a message.

    Raises:
        ValueError: If a scheme is rounded by its inputs and there is no batch.
    """
    known = None if rounded is None else rounded.of_policy(policy)
    if rounds_in_sequence(policy, options):
        return round_sequentially(
            model,
            batches,
            policy,
            rounded=known,
            reestimated=reestimates(model, options),
            forward_fn=forward_fn,
            progress=progress,
        )
    if known is None and any(scheme.needs_inputs for scheme in policy.values()):
        return round_policy(model, batches, policy, forward_fn=forward_fn)
    return known or {}
