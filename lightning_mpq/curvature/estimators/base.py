"""What an estimator of curvature is: settings of its own, and what it makes of a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

from torch import Generator

from ...network.evaluator import Evaluator
from ...network.likelihood import Likelihood
from .input_perturbation import InputPerturbations
from .measurement import Measurement
from .perturbation import Perturbations

Loss = Literal["divergence", "task"]
LOSSES: tuple[Loss, ...] = ("divergence", "task")
UNITS: dict[Loss, str] = {"divergence": "nats per sample", "task": "units of the task loss"}
"""What a predicted loss is counted in. A divergence is summed over the positions and outputs of a sample."""


class Measures(Protocol):
    """Measures batches."""

    def measure(self, batch: Any, generator: Generator) -> Measurement:
        """Return what a batch says of the candidates; ``generator`` is for all that is drawn."""


@dataclass(frozen=True)
class Setting:
    """What an estimator is given.

    Attributes:
        evaluator: Runs the model, and the task loss, on a batch.
        likelihood: What the outputs mean; None where the loss is the task's and the estimator does not ask.
        loss: What is modelled.
        interacting: Whether samples act on each other, as through the batch statistics of BatchNorm.
        everything: All candidates.
        wanted: Positions of the candidates that are to be measured, in order.
        restricted: Positions of some candidates to their perturbations alone.
        inputs: What schemes do to inputs; None if all stay in float. Measurements then hold the columns of weights,
            all of which are wanted, and after them those of inputs. Only estimators that see inputs are given it.
    """

    evaluator: Evaluator
    likelihood: Likelihood | None
    loss: Loss
    interacting: bool
    everything: Perturbations
    wanted: tuple[int, ...]
    restricted: Callable[[Sequence[int]], Perturbations]
    inputs: InputPerturbations | None = None

    @property
    def perturbations(self) -> Perturbations:
        """The wanted candidates alone."""
        return self.everything if len(self.wanted) == self.everything.count else self.restricted(self.wanted)

    def known_likelihood(self) -> Likelihood:
        """Return the likelihood of an estimator that has asked for one."""
        assert self.likelihood is not None
        return self.likelihood


class Estimator(ABC):
    """A way to measure the curvature of a loss along all candidates; what `profile` takes as ``estimator``.

    Write one of your own as a frozen dataclass, whose ``repr`` is part of the name under which results are cached.

    Attributes:
        name: What Taylor models and reports call it.
        default_loss: What is modelled where nobody says it.
        has_gradient: Whether its measurements of the task loss hold the gradient; otherwise it is measured beside.
        scores_batches: Whether there is but one score for a batch whose samples act on each other, so that many small
            chunks and several draws are called for.
        sees_inputs: Whether it measures ``Setting.inputs`` too, by rows.

    Example:
        The squared errors of weights, which need no data:

        >>> import torch
        >>> from torch import nn
        >>> from lightning_mpq import profile
        >>> class WeightError(Estimator):
        ...     name = "weight_error"
        ...     def start(self, setting):
        ...         self.setting = setting
        ...         return self
        ...     def measure(self, batch, generator):
        ...         errors = [self.setting.everything.of_candidate(index) for index in self.setting.wanted]
        ...         squares = torch.tensor([sum(d.square().sum() for d in error.values()) for error in errors])
        ...         matrix = torch.zeros(len(errors), self.setting.everything.count)
        ...         matrix[range(len(errors)), self.setting.wanted] = squares
        ...         return Measurement(len(batch), matrix=matrix)
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> taylor = profile(net, torch.randn(64, 4).split(16), bits=[2, 4], estimator=WeightError())
        >>> taylor
        TaylorModel(divergence by weight_error, 2 groups, 4 candidates, 64 samples)
    """

    name: ClassVar[str]
    default_loss: ClassVar[Loss] = "divergence"
    has_gradient: ClassVar[bool] = False
    scores_batches: ClassVar[bool] = False
    sees_inputs: ClassVar[bool] = False

    @abstractmethod
    def start(self, setting: Setting) -> Measures:
        """Return what measures batches, the model being in eval mode and no parameter asking for a gradient.

        Measurements hold rows along the wanted candidates, or a matrix of the wanted along all candidates.
        """

    def asks_for_likelihood(self, loss: Loss) -> bool:
        """Tell whether it needs to know what the outputs mean."""
        return True
