"""What outputs mean, guessed from their shape, their name and the targets beside them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..tools.warning import warn
from .batches import describe_batch, tensors_of
from .likelihood import Bernoulli, Categorical, Gaussian, Likelihood
from .predicted_targets import targets_of
from .tokens import token_mask


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
