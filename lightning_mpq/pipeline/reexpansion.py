"""The loss expanded again where a plan has taken the weights, for when the expansion at the float weights errs there.

At weights w_q the divergence from the float model, ``KL(p_float || p_w)``, has a gradient: that of a task loss whose
labels are the float model's own outputs. Its curvature is again the Fisher information of the model, now at w_q. Along
the steps ``D_i = Q_i(w_float) - w_q`` to all candidates, those of the present plan being zero,

    dL(x) = KL(p_float || p_wq) + sum_i a_i x_i + 1/2 sum_ij G_ij x_i x_j.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ..curvature import TaylorModel, profile
from ..groups.groups import LayerGroups
from ..network.batchnorm import batch_statistics
from ..network.evaluator import LossFn
from ..network.forward import ForwardFn, forward_batch
from ..network.isolation import isolated
from ..network.layer_kinds import rows_to_weight
from ..network.likelihood import Likelihood, guess_likelihood
from ..network.named_weights import named_layers
from ..quantizers import QuantizedRows
from ..repair.repair import Repair
from ..rounding.rounded_weights import RoundedWeights


def expand_at(
    model: nn.Module,
    batches: Sequence[Any],
    groups: LayerGroups,
    rounded: RoundedWeights,
    codes: Mapping[str, QuantizedRows],
    *,
    loss: str = "divergence",
    likelihood: Likelihood | None = None,
    repair: Repair | None = None,
    statistics: str = "frozen",
    forward_fn: ForwardFn | None = None,
    loss_fn: LossFn | None = None,
    **settings: Any,
) -> TaylorModel:
    """Return the Taylor model of the loss around quantized weights; what it predicts is relative to the loss there.

    Args:
        model: The float model, left as it was.
        batches: Calibration batches.
        groups: Its groups.
        rounded: The weights of all candidates.
        codes: Layer name to the rounded weight around which to expand.
        loss: "divergence" from the float model's outputs, or "task".
        likelihood: What the outputs mean; guessed for None, where that is asked for.
        repair: What the float model is known by; it is repaired likewise at the quantized weights, by default not.
        statistics: "frozen" or "reestimated", see `profile`.
        forward_fn: ``(model, batch) -> outputs``.
        loss_fn: The task loss; by default that of the model's ``training_step``.
        settings: Others of `profile`: curvature, draws, chunk_size, seed, progress.
    """
    twin = copy.deepcopy(model)
    with torch.no_grad():
        layers = named_layers(twin, remove_duplicate=False)
        for layer, quantized in codes.items():
            module = layers[layer]
            weight = module.weight
            assert isinstance(weight, Tensor)
            weight.copy_(rows_to_weight(module, quantized.dequantize(weight.dtype), weight.shape))
    if repair is not None:
        repair.of(twin).apply()
    if getattr(model, "_trainer", None) is not None:
        twin._trainer = model._trainer  # which a copy is without, and a training_step may ask for
    if loss == "divergence":
        if likelihood is None:
            with isolated(model), torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                likelihood = guess_likelihood(forward_batch(model, batches[0], forward_fn), batches[0])
        loss_fn = _divergence_from(model, likelihood, statistics == "reestimated", forward_fn)
    with isolated(model), warnings.catch_warnings():
        # Quantized weights are no minimum, and the loss is not the user's: that is the point.
        warnings.filterwarnings("ignore", message="The network is plainly not near a minimum")
        return profile(
            twin,
            batches,
            groups=groups,
            candidates=rounded.candidates,
            rounded=rounded,
            loss="task",
            likelihood="auto" if likelihood is None else likelihood,
            statistics=statistics,  # type: ignore[arg-type]
            forward_fn=forward_fn,
            loss_fn=loss_fn,
            **settings,
        )


def _divergence_from(
    model: nn.Module, likelihood: Likelihood, reestimated: bool, forward_fn: ForwardFn | None
) -> Callable[[nn.Module, Any], Tensor]:
    """Return the mean divergence from a float model's outputs on a batch, both with the same kind of statistics."""

    def loss(twin: nn.Module, batch: Any) -> Tensor:
        with torch.no_grad(), batch_statistics(model) if reestimated else nullcontext():
            wanted = forward_batch(model, batch, forward_fn)
        return likelihood.divergence(wanted, forward_batch(twin, batch, forward_fn), batch).mean()

    return loss
