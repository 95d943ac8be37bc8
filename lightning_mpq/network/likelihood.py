r"""What the model's outputs mean: a predictive distribution p(y | outputs).

Every estimator of the divergence ``KL(p_float || p_quantized)`` needs only the Fisher information of the
*outputs*, ``H = L L^T``, which is known in closed form for each distribution (A. Botev, H. Ritter, D. Barber,
Practical Gauss-Newton Optimisation for Deep Learning, ICML 2017, section 2; J. Martens, New Insights and
Perspectives on the Natural Gradient Method, JMLR 2020, section 9).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import sqrt
from typing import Any, Literal

import torch
from torch import Generator, Tensor
from torch.nn.functional import log_softmax, one_hot, softplus

from ..tools.checks import shown
from ..tools.random_signs import random_signs
from .batches import of_each_sample
from .predicted_targets import predicted
from .tokens import counting, token_mask

Sampling = Literal["label", "sign"]


class Likelihood(ABC):
    """A predictive distribution over outputs [N, ...]; subclass it for one of your own.

    A custom one defines `root_product`, `root_transpose_product` and `divergence`; `score` follows from them.

    Example:
        Counts with a Poisson distribution, the outputs being logarithms of rates, so that ``H = diag(rate)``:

        >>> class Poisson(Likelihood):
        ...     def root_product(self, outputs, directions, batch):
        ...         return (outputs / 2).exp() * directions
        ...     root_transpose_product = root_product
        ...     def divergence(self, outputs, others, batch):
        ...         terms = outputs.exp() * (outputs - others) - outputs.exp() + others.exp()
        ...         return terms.flatten(1).sum(1)
        >>> Poisson().divergence(torch.zeros(1, 2), torch.full((1, 2), 0.1), None)  # about 0.1**2 / 2 for each rate
        tensor([0.0103])
    """

    def score(self, outputs: Tensor, batch: Any, generator: Generator) -> Tensor:
        """Return a random vector v with mean 0 and covariance H, shaped like ``outputs``.

        By default ``v = L z`` with independent signs z. The score of a drawn label, ``d log p(y) / d outputs``,
        has the same covariance, but where the model is sure of itself it is almost always nearly zero and
        rarely very large, while signs spread H evenly over all draws.
        """
        return self.root_product(outputs, random_signs(outputs.shape, generator, outputs.dtype), batch)

    @abstractmethod
    def root_product(self, outputs: Tensor, directions: Tensor, batch: Any) -> Tensor:
        """Return L z for directions z shaped like ``outputs``."""

    @abstractmethod
    def root_transpose_product(self, outputs: Tensor, directions: Tensor, batch: Any) -> Tensor:
        """Return L^T u for directions u shaped like ``outputs``, so that ``|L^T u|^2 = u^T H u``."""

    @abstractmethod
    def divergence(self, outputs: Tensor, others: Tensor, batch: Any) -> Tensor:
        """Return KL(p(outputs) || p(others)) of each sample in nats, summed over its positions, [N]."""

    def counted(self, outputs: Tensor, batch: Any) -> Tensor:
        """Return how many variables the divergence is summed over in a batch, a scalar; here all elements."""
        return torch.ones_like(outputs).sum()


@dataclass(frozen=True)
class Categorical(Likelihood):
    """Class logits, one distribution at each position.

    Attributes:
        class_dim: Dimension of the outputs that holds the classes: 1 as in ``cross_entropy``, or -1.
        ignore_index: Positions whose target (see `targets_of`) is this do not count. Labels that repeat ``input_ids``
            are targets of the position before, as causal language models of transformers take them.
        sampling: ``"label"``: scores of drawn labels, as the Fisher information is defined.
            ``"sign"``: see `Likelihood.score`; the same expectation with less noise.
    """

    class_dim: int = 1
    ignore_index: int = -100
    sampling: Sampling = "sign"

    def score(self, outputs: Tensor, batch: Any, generator: Generator) -> Tensor:
        """Return the score of one drawn label a position, or ``L z`` for random signs z."""
        if self.sampling == "sign":
            return super().score(outputs, batch, generator)
        probabilities = outputs.softmax(self.class_dim).movedim(self.class_dim, -1)
        flat = probabilities.reshape(-1, probabilities.shape[-1])
        labels = torch.multinomial(flat, 1, generator=generator).reshape(probabilities.shape[:-1])
        residual = one_hot(labels, probabilities.shape[-1]).to(outputs.dtype) - probabilities
        return residual.movedim(-1, self.class_dim) * self._mask(outputs, batch)

    def root_product(self, outputs: Tensor, directions: Tensor, batch: Any) -> Tensor:
        """Return ``L z = sqrt(p) z - p <sqrt(p), z>``; L L^T = diag(p) - p p^T."""
        probabilities = outputs.softmax(self.class_dim)
        scaled = probabilities.sqrt() * directions
        return (scaled - probabilities * scaled.sum(self.class_dim, keepdim=True)) * self._mask(outputs, batch)

    def root_transpose_product(self, outputs: Tensor, directions: Tensor, batch: Any) -> Tensor:
        """Return ``L^T u = sqrt(p) (u - <p, u>)``."""
        probabilities = outputs.softmax(self.class_dim)
        mean = (probabilities * directions).sum(self.class_dim, keepdim=True)
        return probabilities.sqrt() * (directions - mean) * self._mask(outputs, batch)

    def divergence(self, outputs: Tensor, others: Tensor, batch: Any) -> Tensor:
        """Return the sum over positions of ``sum_c p_c (log p_c - log q_c)``."""
        log_p, log_q = log_softmax(outputs, self.class_dim), log_softmax(others, self.class_dim)
        terms = log_p.exp() * (log_p - log_q) * self._mask(outputs, batch)
        return of_each_sample(terms)

    def counted(self, outputs: Tensor, batch: Any) -> Tensor:
        """Return the number of positions that count."""
        positions = torch.ones_like(outputs.narrow(self.class_dim, 0, 1))
        return (positions * self._mask(outputs, batch)).sum()

    def _mask(self, outputs: Tensor, batch: Any) -> Tensor:
        """Return 1 where a position counts and 0 where its target is ``ignore_index`` or its token does not count."""
        targets, tokens = predicted(batch, self.ignore_index), token_mask(batch)
        shape = list(outputs.shape)
        del shape[self.class_dim]
        mask = outputs.new_ones(())
        if targets is not None and list(targets.shape) == shape:
            mask = (targets != self.ignore_index).to(outputs).unsqueeze(self.class_dim)
        if tokens is not None and list(tokens.shape) == shape:
            mask = mask * tokens.to(outputs).unsqueeze(self.class_dim)
        return mask


@dataclass(frozen=True)
class Gaussian(Likelihood):
    """Real-valued outputs with a fixed variance: the divergence is the squared change / (2 variance).

    Attributes:
        variance: Variance of each output around its prediction, in squared units of the outputs.
    """

    variance: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what is no variance."""
        if not self.variance > 0:
            raise ValueError(f"variance must be positive, got {shown(self.variance)}.")

    def root_product(self, outputs: Tensor, directions: Tensor, batch: Any) -> Tensor:
        """Return z / standard deviation."""
        return directions / sqrt(self.variance) * counting(outputs, batch)

    def root_transpose_product(self, outputs: Tensor, directions: Tensor, batch: Any) -> Tensor:
        """Return u / standard deviation."""
        return directions / sqrt(self.variance) * counting(outputs, batch)

    def divergence(self, outputs: Tensor, others: Tensor, batch: Any) -> Tensor:
        """Return the squared change of each sample's outputs / (2 variance)."""
        return of_each_sample((outputs - others).square() * counting(outputs, batch)) / (2 * self.variance)

    def counted(self, outputs: Tensor, batch: Any) -> Tensor:
        """Return the number of elements at tokens that count."""
        return (torch.ones_like(outputs) * counting(outputs, batch)).sum()


@dataclass(frozen=True)
class Bernoulli(Likelihood):
    """Independent binary outputs, each given by its logit."""

    def root_product(self, outputs: Tensor, directions: Tensor, batch: Any) -> Tensor:
        """Return ``sqrt(p (1 - p)) z``."""
        return (outputs.sigmoid() * (-outputs).sigmoid()).sqrt() * directions * counting(outputs, batch)

    def root_transpose_product(self, outputs: Tensor, directions: Tensor, batch: Any) -> Tensor:
        """Return ``sqrt(p (1 - p)) u``; L is diagonal."""
        return self.root_product(outputs, directions, batch)

    def divergence(self, outputs: Tensor, others: Tensor, batch: Any) -> Tensor:
        """Return ``sum p log(p / q) + (1 - p) log((1 - p) / (1 - q))`` in a form that cannot overflow."""
        terms = outputs.sigmoid() * (outputs - others) + softplus(others) - softplus(outputs)
        return of_each_sample(terms * counting(outputs, batch))

    def counted(self, outputs: Tensor, batch: Any) -> Tensor:
        """Return the number of elements at tokens that count."""
        return (torch.ones_like(outputs) * counting(outputs, batch)).sum()


def check_likelihood(likelihood: object) -> None:
    """Refuse what is neither a likelihood nor None, before anything is measured by it.

    Raises:
        TypeError: If it is.
    """
    if likelihood is not None and not isinstance(likelihood, Likelihood):
        raise TypeError(
            f"likelihood must be 'auto' or a Likelihood, such as Categorical(), Gaussian() or Bernoulli(); got "
            f"{shown(likelihood)}."
        )
