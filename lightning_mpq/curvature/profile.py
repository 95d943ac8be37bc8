"""The verb `profile`: candidates and calibration batches in, a Taylor model of the loss out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from ..grids.base import ALL_BITS
from ..groups.candidates import Candidate, make_candidates
from ..groups.groups import LayerGroup, LayerGroups, find_groups
from ..network.batchnorm import batchnorm_layers
from ..network.calibration import Calibration
from ..network.forward import ForwardFn, LossFn
from ..network.likelihood import Likelihood
from ..network.placement import refuse_different_layers
from ..rounding.independent import round_candidates
from ..rounding.rounded_weights import RoundedWeights
from ..tools.checks import check_integer
from ..tools.distributed import errors_shared
from ..tools.kinds import checked_kinds
from ..tools.progress import Progress
from ..tools.renamed import renamed
from .draws import CHUNK_SIZE, draws_a_chunk
from .estimators.base import Estimator, Loss
from .estimators.fisher import Fisher
from .estimators.registry import check_settings, estimator_named, modelled_loss, refuse_unseen_inputs
from .over_batches import measure_batches
from .taylor_model import TaylorModel
from .unseen import without_chance


@renamed(curvature="estimator")
@checked_kinds
@torch.inference_mode(False)  # its caller may evaluate
def profile(
    model: nn.Module,
    batches: Iterable[Any] | Calibration,
    *,
    groups: LayerGroups | Sequence[LayerGroup] | None = None,
    bits: Iterable[int] = ALL_BITS,
    candidates: Sequence[Candidate] | None = None,
    rounded: RoundedWeights | None = None,
    estimator: str | Estimator = "fisher",
    likelihood: Likelihood | Literal["auto"] = "auto",
    statistics: Literal["auto", "frozen", "reestimated"] = "auto",
    draws: int | None = None,
    chunk_size: int | None = None,
    tolerance: float | None = None,
    shrink: bool = True,
    cluster: int = 1,
    loss: Loss | None = None,
    forward_fn: ForwardFn | None = None,
    loss_fn: LossFn | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    cache_dir: str | Path | None = None,
) -> TaylorModel:
    """Measure how the loss reacts to every way of quantizing every group, and every pair of groups.

    Candidates may quantize inputs beside weights (`InputScheme`). The same backward passes then score both, with all
    pairs of them, and a candidate is the sum of what its two schemes do, and of what rounding does to the residual sums
    and averages that are quantized with its inputs (``RoundedWeights.operands``).

    The model is measured in eval mode on its own device and left exactly as it was, random states included.

    Where torch.distributed is in use, every process calls this with the same model and its own batches, and gets the
    Taylor model of all of them: what a single process would find on these batches, to rounding error. (What only some
    processes do belongs into ``with lightning_mpq.tools.distributed.alone():``.)

    Args:
        model: The trained float model.
        batches: Calibration batches; their tensors are moved to the model's device. The samples lie along
            dimension 0 of the outputs.
        groups: What shares a decision; default `find_groups` (model), of weights that the model uses.
        bits: Widths to offer where neither candidates nor rounded weights are given.
        candidates: What may be chosen, in the order of groups; default those of ``rounded``, or else
            `make_candidates` (groups, bits), of which `round_candidates` keeps the best grids.
        rounded: The weights as `round_candidates` rounded them; by default they are rounded here.
        estimator: One of `Estimator`, or its short name. ``"fisher"``: sampled, one backward pass for each draw,
            whatever the number of layers. ``"gauss_newton"``: its exact expectation, one backward pass for each output
            of a sample or one forward-mode pass for each candidate, whichever costs less. ``"secant"``: as that with
            finite steps, one forward pass for each candidate. ``"hessian"``: exact second derivatives of the loss, one
            double backward pass for each candidate.
        likelihood: What the outputs mean, for the divergence; ``"auto"`` guesses and warns what it took.
        statistics: What BatchNorm normalises by. ``"frozen"``: its running statistics. ``"reestimated"``: the
            statistics of each batch (chunk), which follow the perturbed weights, so that the model predicts the
            damage left after re-estimation. ``"fisher"`` then has one score for each chunk and draw instead
            of each sample. ``"auto"``: the latter, as `quantize` will measure statistics again.
        draws: Random output gradients of ``"fisher"``: for each sample (None: 1), or for each chunk where statistics
            are re-estimated (None: 4 to 16, so that 256 samples and more have 64 to 256 scores).
        chunk_size: Most samples to pass through the model at once. None: whole batches, and 32 for ``"fisher"`` with
            re-estimated statistics. Batches whose tensors do not share dimension 0 stay whole.
        shrink: Whether chance is taken out of what was measured: entries are drawn towards zero by their standard
            errors, see `shrink`, and weights that were rounded to these very samples are taken to cost what they cost
            on unseen ones (``RoundedWeights.unseen``).
        cluster: Samples in a row that hang together, as sequences cut from one document do. They are drawn again
            together (`Allocation.stability`), and count as one for standard errors of predictions.
        tolerance: Stop drawing batches once the standard error of the predicted damage of every uniform policy (all
            groups at their fewest bits, at their second fewest, ...) is below this fraction of it; looked at from
            the eighth batch on. A warning says so if the data ends first. None for all batches.
        loss: ``"divergence"`` from the float model, in nats per sample and without gradient (default), or
            ``"task"``: the loss that ``loss_fn`` computes (default for the hessian). With ``"task"`` the
            other estimators take the gradient of the task loss and the curvature of the divergence.
        forward_fn: (model, batch) to outputs; default: the model on the batch or its first item.
        loss_fn: (model, batch) to the mean loss, a scalar; default: the model's ``training_step``.
        seed: Seed of the draws; each batch has a generator of its own that depends on its content, so that
            the order of batches does not matter.
        progress: Called with the fraction done (0 while the number of batches is unknown) and a message.
        cache_dir: Folder of Taylor models by content. An equal call reads its result there, an interrupted one
            or one with more batches continues; batches are then held in memory. What a function passed here
            reads from elsewhere (globals, files) is not part of the key. Only rank 0 reads and writes there. A single
            process keeps the measurements of up to 256 MiB of batches beside, so that a call with other widths
            measures only candidates that are new.

    Returns:
        The Taylor model with standard errors (None if a single batch of the hessian leaves them unknown).

    Raises:
        ValueError: If there is no batch, arguments contradict each other, weights are not those that were rounded, or
            all scores are zero.
        TypeError: If the default forward or loss does not fit the model and batches.
        NonFiniteError: If a weight, an output or a loss is NaN or infinite.

    Example:
        >>> net, data = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(64, 4)
        >>> from lightning_mpq import Categorical
        >>> taylor = profile(net, data.split(16), bits=[2, 4], likelihood=Categorical())
        >>> taylor
        TaylorModel(divergence by fisher, 2 groups, 4 candidates, 64 samples)
    """
    check_settings(estimator, loss, statistics, draws, chunk_size, tolerance, cluster)
    check_integer("seed", seed)
    refuse_different_layers(model)
    known = None if likelihood == "auto" else likelihood
    calibration = Calibration.of(model, batches, forward_fn=forward_fn, loss_fn=loss_fn, likelihood=known)
    if groups is None and candidates is None and rounded is None:
        calibration = calibration.listed("a profile")
        groups = find_groups(model, batches=calibration)
    found = find_groups(model) if groups is None else groups
    by_inputs = candidates is None or any(c.scheme.weight.needs_inputs for c in candidates)
    if rounded is None and (by_inputs or any(_needs_range(c) for c in candidates or ())):
        calibration = calibration.listed("a profile")
        offered = make_candidates(found, bits) if candidates is None else candidates
        rounded = round_candidates(model, calibration, found, offered, best_grid=by_inputs)
        candidates = rounded.candidates
    if rounded is not None:
        with errors_shared():
            rounded.refuse_changed(model, [layer for group in found for layer in group.layers])
    reestimated = statistics != "frozen" and bool(batchnorm_layers(model))
    kind = estimator_named(estimator)
    offered = candidates if candidates is not None else rounded.candidates if rounded is not None else ()
    refuse_unseen_inputs(kind, offered)
    many = reestimated and kind.scores_batches
    if isinstance(kind, Fisher) and isinstance(estimator, str):
        kind = Fisher(draws or (draws_a_chunk(calibration.batches, chunk_size or CHUNK_SIZE) if many else 1))
    measured = measure_batches(
        calibration,
        tuple(found),
        tuple(offered),
        rounded,
        float_bytes=getattr(found, "float_bytes", 0),
        estimator=kind,
        loss=modelled_loss(kind, loss),
        reestimated=reestimated,
        chunk_size=chunk_size or (CHUNK_SIZE if many else None),
        tolerance=tolerance,
        cluster=cluster,
        seed=seed,
        progress=progress,
        cache_dir=cache_dir,
    )
    return without_chance(measured, rounded) if shrink else measured


def _needs_range(candidate: Candidate) -> bool:
    scheme = candidate.scheme.quantized_input
    return scheme is not None and scheme.needs_range
