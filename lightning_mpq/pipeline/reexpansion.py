"""The loss expanded again where a policy has taken the weights, for when the expansion at the float weights errs there.

At weights w_q the divergence from the float model, ``KL(p_float || p_w)``, has a gradient: that of a task loss whose
labels are the float model's own outputs. Its curvature is again the Fisher information of the model, now at w_q. Along
the steps ``D_i = Q_i(w_float) - w_q`` to all candidates, those of the present policy being zero,

    dL(x) = KL(p_float || p_wq) + sum_i a_i x_i + 1/2 sum_ij G_ij x_i x_j.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..curvature import TaylorModel, profile
from ..curvature.estimators.base import Loss
from ..groups.groups import LayerGroups
from ..network.batchnorm import batch_statistics
from ..network.calibration import Calibration
from ..network.forward import LossFn
from ..network.guessed_likelihood import guess_likelihood
from ..network.isolation import isolated
from ..network.layer_kinds import rows_to_weight
from ..network.named_weights import named_layers
from ..quantizers import QuantizedRows
from ..repair.repair import Repair
from ..rounding.rounded_weights import RoundedWeights
from ..tools.copying import copied
from ..tools.process_wide import ProcessWide, quiet


def expand_at(
    calibration: Calibration,
    groups: LayerGroups,
    rounded: RoundedWeights,
    codes: Mapping[str, QuantizedRows],
    *,
    loss: Loss = "divergence",
    repair: Repair | None = None,
    reestimated: bool = False,
    **settings: Any,
) -> TaylorModel:
    """Return the Taylor model of the loss around quantized weights; what it predicts is relative to the loss there.

    Args:
        calibration: The float model, left as it was, and its batches.
        groups: Its groups.
        rounded: The weights of all candidates.
        codes: Layer name to the rounded weight around which to expand.
        loss: "divergence" from the float model's outputs, or "task".
        repair: What is known of the float model; it is repaired likewise at the quantized weights, by default not.
        reestimated: Whether BatchNorm normalises by the statistics of each batch, see `profile`.
        settings: Others of `profile`: estimator, draws, chunk_size, shrink, seed, progress.
    """
    model = calibration.model
    twin = copied(model)
    with torch.no_grad():
        layers = named_layers(twin, remove_duplicate=False)
        for layer, quantized in codes.items():
            module = layers[layer]
            weight = module.weight
            assert isinstance(weight, Tensor)
            weight.copy_(rows_to_weight(module, quantized.dequantize(weight.dtype), weight.shape))
    if repair is not None:
        repair.apply(twin)
    if getattr(model, "_trainer", None) is not None:
        twin._trainer = model._trainer  # which a copy is without, and a training_step may ask for
    if loss == "divergence":
        calibration = replace(calibration, loss_fn=_divergence_from(calibration, reestimated))
    with isolated(model), _NOT_NEAR_A_MINIMUM():
        return profile(
            twin,
            calibration,
            groups=groups,
            candidates=rounded.candidates,
            rounded=replace(rounded, samples={}),  # at other weights than were rounded, and meant so
            loss="task",
            statistics="reestimated" if reestimated else "frozen",
            **settings,
        )


def _divergence_from(calibration: Calibration, reestimated: bool) -> LossFn:
    """Return the mean divergence from the float model's outputs on a batch, both with the same kind of statistics."""
    model, likelihood = calibration.model, calibration.likelihood
    if likelihood is None:
        first = next(calibration.filled())
        with isolated(model), torch.no_grad(), quiet():
            outputs, name = calibration.named_outputs(first)
            likelihood = guess_likelihood(outputs, first, name)
    meaning = likelihood

    def loss(twin: nn.Module, batch: Any) -> Tensor:
        with torch.no_grad(), batch_statistics(model) if reestimated else nullcontext():
            wanted = calibration.forward(batch)
        return meaning.divergence(wanted, calibration.on(twin).forward(batch), batch).mean()

    return loss


@contextmanager
def _not_near_a_minimum() -> Iterator[None]:
    """Quantized weights are no minimum, and the loss is not the user's: that is the point."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The network is plainly not near a minimum")
        yield


_NOT_NEAR_A_MINIMUM = ProcessWide(_not_near_a_minimum)
