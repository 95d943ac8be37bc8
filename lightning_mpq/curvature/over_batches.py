"""Batches measured one after the other and added up to a Taylor model; what earlier calls measured is taken over."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Generator

from ..groups.candidates import Candidate
from ..groups.groups import LayerGroup
from ..network.batches import split_batch, to_device
from ..network.batchnorm import batch_statistics
from ..network.calibration import Calibration
from ..network.evaluator import Evaluator, check_finite_parameters
from ..network.guessed_likelihood import guess_likelihood
from ..network.isolation import isolated
from ..rounding.rounded_weights import RoundedWeights
from ..tools.distributed import Rounds, errors_shared, gather
from ..tools.progress import Progress
from ..tools.warning import warn
from .accumulation import LEAST_BATCHES, Accumulator
from .cache.earlier_work import EarlierWork
from .cache.fingerprint import hash_model, hash_settings
from .cache.kept_measurements import KeptMeasurements, candidate_hashes
from .cache.ranks import check_parts, common_key
from .estimators.base import Estimator, Loss, Setting
from .estimators.input_perturbation import InputPerturbations
from .estimators.joint import JointColumns
from .estimators.perturbation import Perturbations
from .measuring import BatchMeasurement
from .profile_progress import ProfileProgress
from .sanity import warn_far_from_minimum
from .silent_groups import all_ignored, refuse_silence, silent_groups
from .taylor_model import TaylorModel


def measure_batches(
    calibration: Calibration,
    groups: tuple[LayerGroup, ...],
    candidates: tuple[Candidate, ...],
    rounded: RoundedWeights | None,
    *,
    float_bytes: int,
    estimator: Estimator,
    loss: Loss,
    reestimated: bool,
    chunk_size: int | None,
    tolerance: float | None,
    cluster: int,
    seed: int,
    progress: Progress | None,
    cache_dir: str | Path | None,
) -> TaylorModel:
    """Return the Taylor model as it is measured; see `profile`."""
    model = calibration.model
    settings: dict[str, object] = {
        "estimator": estimator,
        "likelihood": calibration.likelihood,
        "reestimated": reestimated,
        "chunk_size": chunk_size,
        "loss": loss,
        "forward_fn": calibration.forward_fn,
        "loss_fn": calibration.loss_fn,
        "seed": seed,
    }
    if rounded is not None:
        settings["rounded"] = rounded.fingerprint
    if cluster > 1:
        settings["cluster"] = cluster
    with isolated(model), batch_statistics(model) if reestimated else nullcontext():
        with errors_shared():
            check_finite_parameters(model)
            perturbations = Perturbations(model, groups, candidates, rounded=rounded)
            hashed = hash_model(model)
            key = hash_settings(hashed, groups, candidates, settings)
        key = common_key(key, model, candidates, rounded)
        sums = Accumulator(groups, candidates, estimator.name, loss, key, float_bytes, cluster)

        def kept(folder: Path) -> KeptMeasurements:
            own = hash_settings(hashed, groups, (), {**settings, "rounded": rounded is not None})
            return KeptMeasurements(folder, own, candidate_hashes(groups, candidates, rounded))

        earlier = EarlierWork(cache_dir, key, calibration.filled(), kept)
        if earlier.result is not None:
            if progress is not None:
                progress(1.0, f"{estimator.name}: {earlier.result.samples} samples, found in {cache_dir}")
            return earlier.result
        earlier.continue_in(sums)

        def restricted(wanted: Sequence[int]) -> Perturbations:
            chosen = [candidates[index] for index in wanted]
            owners = {candidate.group for candidate in chosen}
            return Perturbations(model, [group for group in groups if group.name in owners], chosen, rounded=rounded)

        operands = {} if rounded is None else rounded.operands_of(groups)

        def apart(columns: JointColumns) -> tuple[Perturbations, InputPerturbations]:
            owners = {candidate.group for candidate in columns.weights}
            chosen = [group for group in groups if group.name in owners]
            ranges = {} if rounded is None else rounded.inputs
            weights = Perturbations(model, chosen, columns.weights, rounded=rounded)
            own = {group: operands[group] for group in columns.sums}
            return weights, InputPerturbations(model, chosen, columns.inputs, ranges, own)

        measurement: BatchMeasurement | None = None
        # What is added up is what a cache keeps, so that sums do not tell whether they come from one.
        narrow = torch.promote_types(perturbations.dtype, torch.float32)
        meaning, ignored = calibration.likelihood, 0
        evaluator = Evaluator(calibration)
        clock = ProfileProgress(calibration.batches, estimator.name, progress)
        rounds = Rounds(earlier.batches)
        for number, own in enumerate(rounds, start=1):
            if tolerance is not None and sums.relative_error() <= tolerance:
                break
            for batch in own:
                with rounds.step():
                    evaluator.batch_number = number
                    digest = earlier.digest(number - 1, batch)
                    batch = to_device(batch, perturbations.device)
                    if measurement is None:
                        if meaning is None and estimator.asks_for_likelihood(loss):
                            first = next(split_batch(batch, chunk_size))
                            with torch.no_grad():
                                outputs = evaluator.outputs(first)
                                meaning = guess_likelihood(outputs, first, evaluator.output_name)
                        everything = tuple(range(len(candidates)))
                        setting = Setting(evaluator, meaning, loss, reestimated, perturbations, everything, restricted)
                        measurement = BatchMeasurement(estimator, setting, candidates, apart, operands)
                    ignored += all_ignored(meaning, batch)
                    if earlier.is_done(digest):
                        clock.skip()
                        continue
                    generator = _generator(perturbations.device, seed, digest)
                    parts = []
                    for place, chunk in enumerate(split_batch(batch, chunk_size)):
                        measured = measurement.measure(chunk, generator, *earlier.known(digest, place))
                        parts.append(measured.to(perturbations.device, narrow))
                        sums.add(parts[-1])
                    earlier.keep(digest, parts)
                    sums.hashes.append(digest)
                    clock.tick(sums.samples)
            earlier.store_sometimes(sums)
        guess = repr(meaning) if calibration.likelihood is None else ""
        check_parts(gather((guess, sums.hashes)))
        result = sums.result()
        refuse_silence(silent_groups(result, model, rounded), result, sum(gather(ignored)))
        if tolerance is not None and (reached := sums.relative_error()) > tolerance:
            warn(
                f"The batches ended at a relative error of {reached:.2g} of the predictions ({result.samples} samples "
                f"in {len(result.batch_hashes)} batches, at least {LEAST_BATCHES} are needed); tolerance={tolerance} "
                "asks for more of them."
            )
        earlier.store(result)
    if loss == "task":
        warn_far_from_minimum(result)
    return result


def _generator(device: torch.device, seed: int, content: str) -> Generator:
    """Return a generator for one batch, seeded by the caller's seed and the content of the batch."""
    generator = Generator(device=device)
    generator.manual_seed((int(content[:14], 16) + seed) % 2**63)
    return generator
