r"""What the model's outputs mean: a predictive distribution p(y | outputs).

Every estimator of the divergence ``KL(p_float || p_quantized)`` needs only the Fisher information of the
*outputs*, ``H = L L^T``, which is known in closed form for each distribution (A. Botev, H. Ritter, D. Barber,
Practical Gauss-Newton Optimisation for Deep Learning, ICML 2017, section 2; J. Martens, New Insights and
Perspectives on the Natural Gradient Method, JMLR 2020, section 9).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any, Literal

import torch
from torch import Generator, Tensor
from torch.nn.functional import log_softmax, one_hot, pad, softplus

from ..tools.checks import shown
from ..tools.warning import warn
from .batches import describe_batch, inputs_of, of_each_sample, tensors_of
from .forward import TARGETS
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
        signs = torch.randint(0, 2, outputs.shape, generator=generator, device=outputs.device)
        return self.root_product(outputs, (2 * signs - 1).to(outputs.dtype), batch)

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


def targets_of(batch: Any) -> Tensor | None:
    """Return the targets in a batch: the second item of a tuple or list, or a mapping's ``labels`` or alike."""
    found: Any = None
    if isinstance(batch, (tuple, list)) and len(batch) > 1:
        found = batch[1]
    elif isinstance(batch, Mapping):
        found = next((batch[key] for key in TARGETS if key in batch), None)
    return found if isinstance(found, Tensor) else None


def predicted(batch: Any, ignore_index: int) -> Tensor | None:
    """Return the target that each position predicts; None if the batch has none.

    Labels that repeat ``input_ids`` wherever they are not ignored are those of a causal language model of transformers,
    which shifts them itself: position t predicts the label of t + 1, and the last one none.

    Example:
        >>> predicted({"input_ids": torch.tensor([[5, 6, 7]]), "labels": torch.tensor([[-100, 6, 7]])}, -100)
        tensor([[   6,    7, -100]])
    """
    targets = targets_of(batch)
    first = inputs_of(batch)
    inputs = first.get("input_ids") if isinstance(first, Mapping) else None
    if targets is None or not isinstance(inputs, Tensor) or inputs.shape != targets.shape or targets.dim() != 2:
        return targets
    counts = targets != ignore_index
    if not bool(counts.any()) or not bool((targets == inputs)[counts].all()):
        return targets
    return pad(targets[:, 1:], (0, 1), value=ignore_index)


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


def guess_likelihood(outputs: Tensor, batch: Any, name: str | None = None) -> Likelihood:
    """Guess the distribution from outputs and targets, and say in a warning what was taken.

    Integer targets: `Categorical`, with the classes along the dimension of the outputs that the targets lack. Real
    targets shaped like the outputs: `Bernoulli` if all are 0 or 1, else `Gaussian`. No targets: `Categorical` for
    ``logits``, at each token where there is one for each, and along dimension 1 of a bare matrix with several columns
    that cannot be embeddings or what went in; `Gaussian` for a ``last_hidden_state`` and a bare matrix with one column.

    Args:
        outputs: The model's outputs.
        batch: What they are of.
        name: Under which name the model returned them; None if bare.

    Raises:
        ValueError: If the outputs look like probabilities instead of logits, or it could be one or the other.
    """
    guess = _guess(outputs.detach(), batch, name)
    if guess is None:
        raise ValueError(
            f"likelihood='auto' cannot tell what outputs {list(outputs.shape)} mean with the batch "
            f"{describe_batch(batch)}. Pass likelihood=Categorical(class_dim=...) for logits of classes, Gaussian() "
            "for embeddings and other real values, or Bernoulli() for logits of yes and no."
        )
    if isinstance(guess, Categorical) and _are_probabilities(outputs.detach(), guess.class_dim):
        raise ValueError(
            "The outputs look like probabilities, and likelihood='auto' expects logits. Return them before the "
            "softmax (or its logarithm) from forward_fn; or pass likelihood= if they are logits after all."
        )
    warn(f"likelihood='auto' took {guess} for outputs {list(outputs.shape)}; pass likelihood= to decide it.")
    return guess


def _guess(outputs: Tensor, batch: Any, name: str | None) -> Likelihood | None:
    if name == "last_hidden_state":
        return Gaussian()
    targets = targets_of(batch)
    if targets is None:
        return _guess_without_targets(outputs, batch, name)
    if not targets.is_floating_point() and not targets.is_complex():
        found = [dim for dim in (1, -1) if _lack_classes(outputs, targets, dim)]
        if found and (len(found) == 1 or outputs.dim() == 2):
            return Categorical(found[0])
        if found:  # as many positions as classes
            return Categorical(-1) if name == "logits" and token_mask(batch) is not None else None
    if targets.numel() != outputs.numel():
        return None
    if outputs.dim() > 1 and outputs.shape[1] > 1 and _are_probabilities(targets.reshape(outputs.shape), 1):
        return None  # one-hot labels of classes, or several of yes and no
    return Bernoulli() if ((targets == 0) | (targets == 1)).all() else Gaussian()


def _guess_without_targets(outputs: Tensor, batch: Any, name: str | None) -> Likelihood | None:
    """Guess from the outputs and what they are of."""
    given = next(iter(tensors_of(batch)), None)
    of_tokens = given is not None and not given.is_floating_point() and given.dim() == 2
    if name == "logits":
        at_tokens = of_tokens and given is not None and outputs.dim() == 3 and outputs.shape[:2] == given.shape
        if at_tokens or (outputs.dim() == 2 and outputs.shape[1] > 1):
            return Categorical(-1 if at_tokens else 1)
        return None
    if outputs.dim() != 2 or of_tokens or (given is not None and given.numel() == outputs.numel()):
        return None  # may be an embedding, or a copy of what went in
    if outputs.shape[1] == 1:
        return Gaussian()
    lengths = outputs.norm(dim=1)
    return None if bool(((lengths - 1).abs() < 1e-3).all()) else Categorical()


def _lack_classes(outputs: Tensor, targets: Tensor, class_dim: int) -> bool:
    """Tell whether targets have a class for each position of outputs whose classes lie along a dimension."""
    shape = list(outputs.shape)
    if outputs.dim() < 2 or shape[class_dim] < 2:
        return False
    return list(targets.shape) == shape[:class_dim] + shape[class_dim:][1:]


def _are_probabilities(outputs: Tensor, class_dim: int) -> bool:
    """Tell whether all outputs are in [0, 1] and sum to 1 over the classes."""
    sums = outputs.sum(class_dim)
    return bool((outputs >= 0).all() and (sums - 1).abs().max() < 1e-3)
