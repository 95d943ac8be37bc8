"""Estimators at work: their sums over batches, and the Taylor model that the sums amount to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Generator, Tensor

from ..candidates import Candidate
from ..distributed import gather
from ..groups import LayerGroup
from .batch_fisher import BatchFisher
from .evaluator import Evaluator
from .fingerprint import combine
from .fisher import Fisher
from .gauss_newton import GaussNewton
from .hessian import Hessian, TaskGradient, divergence_loss
from .likelihood import Likelihood, guess_likelihood
from .model import TaylorModel
from .moments import WeightedMoments
from .perturbation import Perturbations
from .secant import Secant

Curvature = Literal["fisher", "hessian", "gauss_newton", "secant"]
Loss = Literal["divergence", "task"]
CURVATURES: tuple[str, ...] = get_args(Curvature)
LEAST_BATCHES = 8
"""Below this number of batches their differences say too little about the error of their mean."""
LOSSES: tuple[str, ...] = get_args(Loss)


class Estimator(Protocol):
    """Adds batches to sums."""

    def update(self, batch: Any, generator: Generator) -> int:
        """Add a batch and return its number of samples."""


class Accumulator:
    """The sums of gradient and curvature over all batches so far, those of this process.

    Attributes:
        samples: Samples added so far by this process.
        hashes: Hashes of the batches added so far by this process.
        guess: What ``likelihood="auto"`` was taken for; empty if there was nothing to guess.
    """

    def __init__(
        self,
        groups: tuple[LayerGroup, ...],
        candidates: tuple[Candidate, ...],
        curvature: Curvature,
        loss: Loss,
        settings_hash: str,
        float_bytes: int,
    ) -> None:
        """Start from nothing; see `TaylorModel` for the arguments."""
        self.samples = 0
        self.hashes: list[str] = []
        self.guess = ""
        self._facts: dict[str, Any] = {
            "groups": groups,
            "candidates": candidates,
            "estimator": curvature,
            "loss": loss,
            "float_bytes": float_bytes,
            "settings_hash": settings_hash,
        }
        count = len(candidates)
        self._gradient = WeightedMoments((count,))
        self._curvature = WeightedMoments((count, count))
        self._plans = _uniform_plans(candidates)
        self._predictions = WeightedMoments((len(self._plans),))
        self._estimators: list[Estimator] = []

    def prepare(
        self,
        evaluator: Evaluator,
        perturbations: Perturbations,
        likelihood: Likelihood | Literal["auto"],
        draws: int,
        whole_batches: bool,
        batch: Any,
    ) -> None:
        """Make the estimators, which then add to the sums of this object.

        Args:
            evaluator: Runs model and loss.
            perturbations: All candidates.
            likelihood: What the outputs mean; ``"auto"`` is guessed from ``batch``.
            draws: Random output gradients for each sample (fisher).
            whole_batches: Whether samples act on each other, so that fisher scores whole batches.
            batch: Any batch, on the model's device.
        """
        curvature, loss = self._facts["estimator"], self._facts["loss"]
        if curvature == "hessian" and loss == "task":
            self._use(Hessian(evaluator.loss, perturbations, evaluator.model))
            return
        if likelihood == "auto":
            with torch.no_grad():
                likelihood = guess_likelihood(evaluator.outputs(batch), batch)
            self.guess = repr(likelihood)
        if curvature == "hessian":
            self._use(Hessian(divergence_loss(evaluator, likelihood), perturbations, evaluator.model))
            return
        if curvature == "fisher":
            kind_of_fisher = BatchFisher if whole_batches else Fisher
            self._use(kind_of_fisher(evaluator, perturbations, likelihood, draws))
        else:
            kind = Secant if curvature == "secant" else GaussNewton
            self._use(kind(evaluator, perturbations, likelihood, whole_batches))
        if loss == "task":
            self._use(TaskGradient(evaluator.loss, perturbations))

    def _use(self, estimator: Hessian | TaskGradient | Fisher | BatchFisher | GaussNewton) -> None:
        if isinstance(estimator, TaskGradient):
            estimator.gradient = self._gradient
        if not isinstance(estimator, TaskGradient) or isinstance(estimator, Hessian):
            estimator.curvature = self._curvature
        self._estimators.append(estimator)

    @property
    def prepared(self) -> bool:
        """Whether `prepare` was called."""
        return bool(self._estimators)

    def add(self, batch: Any, generator: Generator) -> None:
        """Add a batch, or a chunk of one, on the model's device."""
        before = self._plan_sums()
        counts = [estimator.update(batch, generator) for estimator in self._estimators]
        self.samples += counts[0]
        self._predictions.update((self._plan_sums() - before) / counts[0], weight=counts[0])

    def relative_error(self) -> float:
        """Return the largest standard error, relative to its value, among the predictions for uniform plans.

        It comes from the differences between batches (chunks), so that correlated errors of entries are seen;
        infinite before there are `LEAST_BATCHES` of them. All processes must ask, and get the same answer.
        """
        predictions = WeightedMoments((len(self._plans),))
        predictions.load_sums(self._predictions.sums_over_ranks())
        if int(predictions.units) < LEAST_BATCHES:
            return torch.inf
        value, error = predictions.mean_and_error()
        return float((error / value.abs()).nan_to_num(nan=0.0, posinf=torch.inf).max())

    def continue_from(self, earlier: TaylorModel) -> None:
        """Take over the sums of an earlier measurement with the same settings."""
        assert earlier.sums is not None
        self.samples = earlier.samples
        self.hashes = list(earlier.batch_hashes)
        for name, moments in self._moments().items():
            moments.load_sums(_sums_of(name, earlier.sums))

    def _moments(self) -> dict[str, WeightedMoments]:
        return {"gradient": self._gradient, "curvature": self._curvature, "predictions": self._predictions}

    def _plan_sums(self) -> Tensor:
        """Return ``a.x + x.G.x / 2`` of each uniform plan x, summed over all samples so far."""
        slope, matrix = self._gradient.first, self._curvature.first
        if self._facts["loss"] != "task":
            slope = torch.zeros_like(slope)
        return torch.stack([slope[x].sum() + matrix[x][:, x].sum() / 2 for x in self._plans])

    def result(self) -> TaylorModel:
        """Return the Taylor model of the batches of all processes so far; all must ask."""
        sums = {
            f"{name}.{key}": value
            for name, moments in self._moments().items()
            for key, value in moments.sums_over_ranks().items()
        }
        parts = gather((self.samples, self.hashes))
        hashes = tuple(digest for _, digests in parts for digest in digests)
        return model_of_sums(sums, samples=sum(samples for samples, _ in parts), batch_hashes=hashes, **self._facts)


def model_of_sums(sums: Mapping[str, Tensor], *, loss: str, **facts: Any) -> TaylorModel:
    """Return the Taylor model that sums over batches amount to.

    Args:
        sums: ``gradient.`` and ``curvature.`` followed by the names of `WeightedMoments.sums`.
        loss: What is modelled; the gradient of the divergence is zero without error.
        facts: The other fields of `TaylorModel`.
    """
    means = {}
    for name in ("gradient", "curvature"):
        own = _sums_of(name, sums)
        moments = WeightedMoments(tuple(own["first"].shape))
        moments.load_sums(own)
        if name == "gradient" and loss != "task":
            means[name] = (torch.zeros_like(own["first"]), torch.zeros_like(own["first"]))
        else:
            means[name] = moments.mean_and_error()
    errors = {name: error if torch.isfinite(error).all() else None for name, (_, error) in means.items()}
    return TaylorModel(
        gradient=means["gradient"][0],
        curvature=means["curvature"][0],
        gradient_error=errors["gradient"],
        curvature_error=errors["curvature"],
        loss=loss,
        sums=dict(sums),
        fingerprint=combine(facts["settings_hash"], facts["batch_hashes"]),
        **facts,
    )


def _sums_of(name: str, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}."): value for key, value in sums.items() if key.startswith(f"{name}.")}


def _uniform_plans(candidates: Sequence[Candidate]) -> list[list[int]]:
    """Return plans that give every group its fewest bits, its second fewest, ... as lists of candidates."""
    by_group: dict[str, list[int]] = {}
    for index, candidate in enumerate(candidates):
        by_group.setdefault(candidate.group, []).append(index)
    ladders = [sorted(members, key=lambda i: candidates[i].scheme.bits) for members in by_group.values()]
    steps = max(len(ladder) for ladder in ladders)
    return [[ladder[min(step, len(ladder) - 1)] for ladder in ladders] for step in range(steps)]


def merge(parts: Sequence[TaylorModel]) -> TaylorModel:
    """Return the model of all data of several profiles that differ in their batches only.

    Raises:
        ValueError: If there is none, their settings differ, or one holds no sums (it was not made by `profile`).
    """
    if not parts:
        raise ValueError("Expected at least one Taylor model to merge, got none.")
    first = parts[0]
    if any(part.sums is None for part in parts):
        raise ValueError("Only Taylor models made by profile can be merged: the others hold no sums over batches.")
    if any(part.settings_hash != first.settings_hash for part in parts):
        raise ValueError(
            "The Taylor models differ in weights, candidates, estimator settings or version; only profiles of the "
            "same model with the same settings on other batches can be merged."
        )
    sums: dict[str, Tensor] = {}
    for part in parts:
        for name, value in (part.sums or {}).items():
            sums[name] = sums[name] + value if name in sums else value
    return model_of_sums(
        sums,
        groups=first.groups,
        candidates=first.candidates,
        estimator=first.estimator,
        loss=first.loss,
        samples=sum(part.samples for part in parts),
        float_bytes=first.float_bytes,
        settings_hash=first.settings_hash,
        batch_hashes=tuple(digest for part in parts for digest in part.batch_hashes),
    )
