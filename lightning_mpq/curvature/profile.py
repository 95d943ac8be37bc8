"""The verb `profile`: candidates and calibration batches in, a Taylor model of the loss out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence, Sized
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Generator, Tensor, nn

from ..calling import to_device
from ..candidates import Candidate, make_candidates
from ..errors import NonFiniteError
from ..groups import LayerGroup, LayerGroups, find_groups
from .batches import Evaluator, ForwardFunction, LossFunction, split_batch
from .fingerprint import combine, hash_batch, hash_settings
from .fisher import Fisher
from .hessian import Hessian, TaskGradient, divergence_loss
from .isolation import isolated
from .likelihood import Likelihood, guess_likelihood
from .model import TaylorModel
from .moments import WeightedMoments
from .perturbation import Perturbations

Curvature = Literal["fisher", "hessian"]
Loss = Literal["divergence", "task"]
Progress = Callable[[float, str], None]


class _Estimator(Protocol):
    def update(self, batch: Any, generator: Generator) -> int: ...


def profile(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    groups: LayerGroups | Sequence[LayerGroup] | None = None,
    bits: Iterable[int] = range(2, 9),
    candidates: Sequence[Candidate] | None = None,
    curvature: Curvature = "fisher",
    likelihood: Likelihood | Literal["auto"] = "auto",
    draws: int = 1,
    chunk_size: int | None = None,
    loss: Loss | None = None,
    forward_fn: ForwardFunction | None = None,
    loss_fn: LossFunction | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> TaylorModel:
    """Measure how the loss reacts to every way of quantizing every group, and every pair of groups.

    The model is measured in eval mode on its own device and left exactly as it was, random states included.

    Args:
        model: The trained float model.
        batches: Calibration batches; their tensors are moved to the model's device. The samples lie along
            dimension 0 of the outputs.
        groups: What shares a decision; default `find_groups` (model).
        bits: Widths to offer where ``candidates`` is None.
        candidates: What may be chosen, in the order of groups; default `make_candidates` (groups, bits).
        curvature: Estimator. ``"fisher"``: one backward pass for each draw, whatever the number of layers.
            ``"hessian"``: exact second derivatives, one double backward pass for each candidate.
        likelihood: What the outputs mean, for the divergence; ``"auto"`` guesses and warns what it took.
        draws: Random output gradients for each sample (fisher).
        chunk_size: Most samples to pass through the model at once; None for whole batches. Batches whose
            tensors do not share dimension 0 stay whole.
        loss: ``"divergence"`` from the float model, in nats per sample and without gradient (default), or
            ``"task"``: the loss that ``loss_fn`` computes (default for the hessian). With ``"task"`` the
            other estimators take the gradient of the task loss and the curvature of the divergence.
        forward_fn: (model, batch) to outputs; default: the model on the batch or its first item.
        loss_fn: (model, batch) to the mean loss, a scalar; default: the model's ``training_step``.
        seed: Seed of the draws; each batch has a generator of its own that depends on its content, so that
            the order of batches does not matter.
        progress: Called with the fraction done (0 while the number of batches is unknown) and a message.

    Returns:
        The Taylor model with standard errors (None if a single batch of the hessian leaves them unknown).

    Raises:
        ValueError: If there is no batch, or arguments contradict each other.
        TypeError: If the default forward or loss does not fit the model and batches.
        NonFiniteError: If a weight, an output or a loss is NaN or infinite.

    Example:
        >>> net, data = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(64, 4)
        >>> from lightning_mpq.curvature import Categorical
        >>> taylor = profile(net, data.split(16), bits=[2, 4], likelihood=Categorical())
        >>> taylor
        TaylorModel(divergence by fisher, 2 groups, 4 candidates, 64 samples)
    """
    _check_choice("curvature", curvature, get_args(Curvature))
    modelled: Loss = loss or ("task" if curvature == "hessian" else "divergence")
    _check_choice("loss", modelled, get_args(Loss))
    if draws < 1 or (chunk_size is not None and chunk_size < 1):
        raise ValueError(f"draws and chunk_size must be positive, got {draws} and {chunk_size}.")
    found = find_groups(model) if groups is None else groups
    offered = make_candidates(found, bits) if candidates is None else tuple(candidates)
    settings = {
        "curvature": curvature,
        "likelihood": likelihood,
        "draws": draws,
        "chunk_size": chunk_size,
        "loss": modelled,
        "forward_fn": forward_fn,
        "loss_fn": loss_fn,
        "seed": seed,
    }
    with isolated(model):
        _check_finite(model)
        key = hash_settings(model, tuple(found), offered, settings)
        perturbations = Perturbations(model, tuple(found), offered)
        evaluator = Evaluator(model, forward_fn, loss_fn)
        device = next(iter(perturbations.modules.values())).weight.device
        assert isinstance(device, torch.device)
        estimators: list[_Estimator] = []
        hashes: list[bytes] = []
        samples = 0
        clock = _Clock(batches, curvature, progress)
        for number, batch in enumerate(batches, start=1):
            evaluator.batch_number = number
            hashes.append(hash_batch(batch))
            batch = to_device(batch, model)
            generator = _generator(device, seed, hashes[-1])
            for chunk in split_batch(batch, chunk_size):
                if not estimators:
                    estimators = _estimators(curvature, modelled, evaluator, perturbations, likelihood, draws, chunk)
                samples += [estimator.update(chunk, generator) for estimator in estimators][0]
            clock.tick(samples)
        if not samples:
            raise ValueError("There is nothing to profile on: the iterable of batches is empty.")
        return _assemble(estimators, tuple(found), offered, curvature, modelled, samples, found, combine(key, hashes))


def _estimators(
    curvature: Curvature,
    loss: Loss,
    evaluator: Evaluator,
    perturbations: Perturbations,
    likelihood: Likelihood | Literal["auto"],
    draws: int,
    batch: Any,
) -> list[_Estimator]:
    """Return the estimators that together yield gradient and curvature; the first counts the samples."""
    if curvature == "hessian" and loss == "task":
        return [Hessian(evaluator.loss, perturbations)]
    if likelihood == "auto":
        with torch.no_grad():
            likelihood = guess_likelihood(evaluator.outputs(batch), batch)
    if curvature == "hessian":
        return [Hessian(divergence_loss(evaluator, likelihood), perturbations)]
    estimators: list[_Estimator] = [Fisher(evaluator, perturbations, likelihood, draws)]
    if loss == "task":
        estimators.append(TaskGradient(evaluator.loss, perturbations))
    return estimators


def _assemble(
    estimators: Sequence[_Estimator],
    groups: tuple[LayerGroup, ...],
    candidates: tuple[Candidate, ...],
    curvature: str,
    loss: str,
    samples: int,
    found: object,
    fingerprint: str,
) -> TaylorModel:
    count = len(candidates)
    gradient, gradient_error = torch.zeros(count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
    for estimator in estimators:
        if loss == "task" and isinstance(estimator, TaskGradient):
            gradient, gradient_error = _mean_and_error(estimator.gradient)
    moments = estimators[0].curvature  # type: ignore[attr-defined]
    matrix, matrix_error = _mean_and_error(moments)
    return TaylorModel(
        groups=groups,
        candidates=candidates,
        gradient=gradient,
        curvature=matrix,
        estimator=curvature,
        loss=loss,
        samples=samples,
        gradient_error=gradient_error if torch.isfinite(gradient_error).all() else None,
        curvature_error=matrix_error if torch.isfinite(matrix_error).all() else None,
        float_bytes=getattr(found, "float_bytes", 0),
        fingerprint=fingerprint,
    )


def _mean_and_error(moments: WeightedMoments) -> tuple[Tensor, Tensor]:
    mean, error = moments.compute()
    shape = moments.first.shape  # torchmetrics returns single elements as scalars
    return mean.cpu().reshape(shape), error.cpu().reshape(shape)


def _generator(device: torch.device, seed: int, content: bytes) -> Generator:
    """Return a generator for one batch, seeded by the caller's seed and the content of the batch."""
    generator = Generator(device=device)
    generator.manual_seed((int.from_bytes(content[:7], "big") + seed) % 2**63)
    return generator


def _check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}.")


def _check_finite(model: nn.Module) -> None:
    """Refuse a model with a parameter that is not finite, and name it (a buffer may be: an attention mask)."""
    for name, tensor in model.named_parameters():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            module, _, own = name.rpartition(".")
            raise NonFiniteError(
                f"{int((~torch.isfinite(tensor)).sum())} of {tensor.numel()} values of {own!r} in the module "
                f"{module or type(model).__name__!r} are NaN or infinite."
            )


class _Clock:
    """Reports progress with samples done and the time left."""

    def __init__(self, batches: object, curvature: str, progress: Progress | None) -> None:
        self._total = len(batches) if isinstance(batches, Sized) else None
        self._curvature = curvature
        self._progress = progress
        self._start = time.monotonic()
        self._done = 0

    def tick(self, samples: int) -> None:
        self._done += 1
        if self._progress is None:
            return
        fraction = min(1.0, self._done / self._total) if self._total else 0.0
        left = (time.monotonic() - self._start) * (1 / fraction - 1) if fraction else None
        message = f"{self._curvature}: {samples} samples" + (f", {left:.0f} s left" if left is not None else "")
        self._progress(fraction, message)
