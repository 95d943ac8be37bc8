"""The verb `profile`: candidates and calibration batches in, a Taylor model of the loss out."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Generator, nn

from ..groups.candidates import Candidate, make_candidates
from ..groups.groups import LayerGroup, LayerGroups, find_groups
from ..network.batches import split_batch, to_device
from ..network.batchnorm import batch_statistics, batchnorm_layers
from ..network.evaluator import Evaluator, LossFn, check_finite_parameters
from ..network.forward import ForwardFn
from ..network.isolation import isolated
from ..network.likelihood import Likelihood, guess_likelihood
from ..rounding.rounded_weights import RoundedWeights
from ..tools.distributed import Rounds, errors_shared, gather
from ..tools.progress import Progress
from .accumulation import LEAST_BATCHES, Accumulator
from .cache.earlier_work import EarlierWork
from .cache.fingerprint import hash_settings
from .cache.kept_measurements import KeptMeasurements, candidate_hashes
from .cache.ranks import check_parts, common_key
from .estimators.perturbation import Perturbations
from .estimators.registry import Curvature, Estimators, Loss, check_settings, modelled_loss
from .profile_progress import ProfileClock
from .sanity import warn_far_from_minimum
from .taylor_model import TaylorModel


def profile(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    groups: LayerGroups | Sequence[LayerGroup] | None = None,
    bits: Iterable[int] = range(2, 9),
    candidates: Sequence[Candidate] | None = None,
    rounded: RoundedWeights | None = None,
    curvature: Curvature = "fisher",
    likelihood: Likelihood | Literal["auto"] = "auto",
    statistics: Literal["frozen", "reestimated"] = "frozen",
    draws: int = 1,
    chunk_size: int | None = None,
    tolerance: float | None = None,
    loss: Loss | None = None,
    forward_fn: ForwardFn | None = None,
    loss_fn: LossFn | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    cache_dir: str | Path | None = None,
) -> TaylorModel:
    """Measure how the loss reacts to every way of quantizing every group, and every pair of groups.

    The model is measured in eval mode on its own device and left exactly as it was, random states included.

    Where torch.distributed is in use, every process calls this with the same model and its own batches, and gets the
    Taylor model of all of them: what a single process would find on these batches, to rounding error. (What only some
    processes do belongs into ``with lightning_mpq.distributed.alone():``.)

    Args:
        model: The trained float model.
        batches: Calibration batches; their tensors are moved to the model's device. The samples lie along
            dimension 0 of the outputs.
        groups: What shares a decision; default `find_groups` (model).
        bits: Widths to offer where ``candidates`` is None.
        candidates: What may be chosen, in the order of groups; default those of ``rounded``, or else
            `make_candidates` (groups, bits).
        rounded: The weights as `round_candidates` rounded them; None to round each weight by itself.
        curvature: Estimator. ``"fisher"``: sampled, one backward pass for each draw, whatever the number of
            layers. ``"gauss_newton"``: its exact expectation, one backward pass for each output of a sample or one
            forward-mode pass for each candidate, whichever costs less. ``"secant"``: as that with finite steps, one
            forward pass for each candidate. ``"hessian"``: exact second derivatives of the loss, one double backward
            pass for each candidate.
        likelihood: What the outputs mean, for the divergence; ``"auto"`` guesses and warns what it took.
        statistics: What BatchNorm normalises by. ``"frozen"``: its running statistics. ``"reestimated"``: the
            statistics of each batch (chunk), which follow the perturbed weights, so that the model predicts the
            damage left after re-estimation. ``"fisher"`` then has one score for each batch and draw instead
            of each sample: use many batches, of a few dozen samples, and several draws.
        draws: Random output gradients for each sample (fisher).
        chunk_size: Most samples to pass through the model at once; None for whole batches. Batches whose
            tensors do not share dimension 0 stay whole.
        tolerance: Stop drawing batches once the standard error of the predicted damage of every uniform plan (all
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
        ValueError: If there is no batch, or arguments contradict each other.
        TypeError: If the default forward or loss does not fit the model and batches.
        NonFiniteError: If a weight, an output or a loss is NaN or infinite.

    Example:
        >>> net, data = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(64, 4)
        >>> from lightning_mpq import Categorical
        >>> taylor = profile(net, data.split(16), bits=[2, 4], likelihood=Categorical())
        >>> taylor
        TaylorModel(divergence by fisher, 2 groups, 4 candidates, 64 samples)
    """
    check_settings(curvature, loss, statistics, draws, chunk_size, tolerance)
    modelled = modelled_loss(curvature, loss)
    found = find_groups(model) if groups is None else groups
    if candidates is None:
        candidates = make_candidates(found, bits) if rounded is None else rounded.candidates
    offered = tuple(candidates)
    settings: dict[str, object] = {
        "curvature": curvature,
        "likelihood": likelihood,
        "statistics": statistics,
        "draws": draws,
        "chunk_size": chunk_size,
        "loss": modelled,
        "forward_fn": forward_fn,
        "loss_fn": loss_fn,
        "seed": seed,
    }
    if rounded is not None:
        settings["rounded"] = rounded.fingerprint
    reestimated = statistics == "reestimated" and bool(batchnorm_layers(model))
    with isolated(model), batch_statistics(model) if reestimated else nullcontext():
        with errors_shared():
            check_finite_parameters(model)
            perturbations = Perturbations(model, tuple(found), offered, rounded=rounded)
            key = hash_settings(model, tuple(found), offered, settings)
        key = common_key(key, model, offered, rounded)
        sums = Accumulator(tuple(found), offered, curvature, modelled, key, getattr(found, "float_bytes", 0))

        def kept(folder: Path) -> KeptMeasurements:
            own = hash_settings(model, tuple(found), (), {**settings, "rounded": rounded is not None})
            return KeptMeasurements(folder, own, candidate_hashes(found, offered, rounded), perturbations.dtype)

        earlier = EarlierWork(cache_dir, key, batches, kept)
        if earlier.result is not None:
            if progress is not None:
                progress(1.0, f"{curvature}: {earlier.result.samples} samples, found in {cache_dir}")
            return earlier.result
        earlier.continue_in(sums)

        def restricted(wanted: Sequence[int]) -> Perturbations:
            chosen = [offered[index] for index in wanted]
            owners = {candidate.group for candidate in chosen}
            return Perturbations(model, [group for group in found if group.name in owners], chosen, rounded=rounded)

        estimators: Estimators | None = None
        meaning: Likelihood | None = None
        evaluator = Evaluator(model, forward_fn, loss_fn)
        clock = ProfileClock(earlier.batches, curvature, progress)
        rounds = Rounds(earlier.batches)
        for number, own in enumerate(rounds, start=1):
            if tolerance is not None and sums.relative_error() <= tolerance:
                break
            for batch in own:
                with rounds.step():
                    evaluator.batch_number = number
                    digest = earlier.digest(number - 1, batch)
                    batch = to_device(batch, perturbations.device)
                    if estimators is None:
                        chunk = next(split_batch(batch, chunk_size))
                        meaning = _meaning(likelihood, curvature, modelled, evaluator, chunk)
                        estimators = Estimators(
                            curvature, modelled, evaluator, meaning, draws, reestimated, perturbations, restricted
                        )
                    if earlier.is_done(digest):
                        clock.skip()
                        continue
                    generator = _generator(perturbations.device, seed, digest)
                    parts = []
                    for place, chunk in enumerate(split_batch(batch, chunk_size)):
                        parts.append(estimators.measure(chunk, generator, *earlier.known(digest, place)))
                        sums.add(parts[-1])
                    earlier.keep(digest, parts)
                    sums.hashes.append(digest)
                    clock.tick(sums.samples)
            earlier.store_sometimes(sums)
        guess = repr(meaning) if likelihood == "auto" else ""
        check_parts(gather((guess, sums.hashes)))
        result = sums.result()
        if tolerance is not None and (reached := sums.relative_error()) > tolerance:
            warnings.warn(
                f"The batches ended at a relative error of {reached:.2g} of the predictions ({result.samples} samples "
                f"in {len(result.batch_hashes)} batches, at least {LEAST_BATCHES} are needed); tolerance={tolerance} "
                "asks for more of them.",
                UserWarning,
                stacklevel=2,
            )
        earlier.store(result)
    if modelled == "task":
        warn_far_from_minimum(result)
    return result


def _meaning(
    likelihood: Likelihood | Literal["auto"], curvature: str, loss: str, evaluator: Evaluator, batch: Any
) -> Likelihood | None:
    """Return what the outputs mean, guessed from a batch where nobody says; None if the estimator does not ask."""
    if curvature == "hessian" and loss == "task":
        return None
    if likelihood != "auto":
        return likelihood
    with torch.no_grad():
        return guess_likelihood(evaluator.outputs(batch), batch)


def _generator(device: torch.device, seed: int, content: str) -> Generator:
    """Return a generator for one batch, seeded by the caller's seed and the content of the batch."""
    generator = Generator(device=device)
    generator.manual_seed((int(content[:14], 16) + seed) % 2**63)
    return generator
