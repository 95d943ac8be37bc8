"""How the loss is measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..curvature.estimators.base import Estimator, Loss
from ..curvature.estimators.registry import check_settings
from ..network.likelihood import Likelihood, check_likelihood
from ..tools.checks import check_integer, check_one_of


@dataclass(frozen=True)
class CurvatureOptions:
    """How the loss is measured.

    Attributes:
        estimator: "fisher" (one backward pass), "hessian" (exact, of the task loss), "gauss_newton", "secant", or an
            `Estimator` of your own.
        loss: "divergence" from the float model, "task", or None for the estimator's own default.
        statistics: What BatchNorm normalises by while the loss is measured: "frozen" running statistics, or
            "reestimated", which predicts the loss after statistics are measured again. "auto": the latter if
            that is what will happen.
        draws: Random output gradients of ``fisher``: per sample with frozen statistics (None: 1), per chunk of
            samples with re-estimated ones (None: 4 to 16, the more the fewer chunks there are; see `profile`).
        chunk_size: Most samples at once; None: whole batches, and 32 for ``fisher`` with re-estimated statistics.
        tolerance: Relative standard error of predictions at which no more batches are drawn; None for all.
        cluster: Samples in a row that hang together, as sequences cut from one document; see `profile`.
        shrink: Whether noisy entries are drawn towards zero by their standard errors, so that the solver cannot
            exploit them.
        likelihood: What the outputs mean: "auto" guesses and says so, or e.g. ``Categorical(class_dim=1)``.
        seed: Seed of the drawn labels, and of the order in which a Trainer's calibration batches are drawn.

    Example::

        curvature = mpq.CurvatureOptions(estimator="hessian", loss="task")     # of training_step's own loss
        mpq.MixedPrecisionQuantization(3.0, curvature=curvature)
    """

    estimator: str | Estimator = "fisher"
    loss: Loss | None = None
    statistics: Literal["auto", "frozen", "reestimated"] = "auto"
    draws: int | None = None
    chunk_size: int | None = None
    tolerance: float | None = None
    cluster: int = 1
    shrink: bool = True
    likelihood: Likelihood | Literal["auto"] = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse, before anything is trained, what could not be profiled after it."""
        check_settings(
            self.estimator, self.loss, self.statistics, self.draws, self.chunk_size, self.tolerance, self.cluster
        )
        check_one_of("shrink", self.shrink, (True, False))
        check_likelihood(self.known_likelihood)
        check_integer("seed", self.seed)

    @property
    def known_likelihood(self) -> Likelihood | None:
        """What the outputs mean, None where that is to be guessed."""
        return None if self.likelihood == "auto" else self.likelihood
