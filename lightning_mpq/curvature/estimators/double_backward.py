"""Second derivatives by autograd, and sentences for where it has none or a wrong one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

from ...tools.random_signs import random_signs
from ...tools.warning import warn

_WAYS_OUT = "Use estimator='fisher' or 'gauss_newton' (first derivatives), or 'secant' (none)"
_HIDDEN = (
    f"their backward uses values that autograd does not follow. {_WAYS_OUT}, or write backward with operations on "
    "ctx.saved_tensors that can be differentiated, and without once_differentiable."
)


def differentiate(
    what: str, outputs: Tensor, leaves: Sequence[Tensor], *, create_graph: bool = False, retain_graph: bool = True
) -> tuple[Tensor | None, ...]:
    """Return d outputs / d leaves of a scalar, None for a leaf that it does not depend on.

    Args:
        what: Which derivative of what this is, for the message.
        outputs: A scalar with a graph.
        leaves: What to differentiate by.
        create_graph: Whether the result is to be differentiated again.
        retain_graph: Whether the graph is used again.

    Raises:
        NotImplementedError: If an operation on the way has no such derivative; names the way out.
    """
    try:
        return torch.autograd.grad(
            outputs, leaves, create_graph=create_graph, retain_graph=retain_graph, allow_unused=True
        )
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, NotImplementedError) as error:
        raise NotImplementedError(
            f"Automatic differentiation has no {what}: {error} {_WAYS_OUT}, or keep these layers in float."
        ) from error


def custom_functions(loss: Tensor) -> list[str]:
    """Return the names of the user's own ``torch.autograd.Function`` classes in the graph of a loss, sorted.

    What their backward does with tensors that autograd does not follow (detached, NumPy, a kernel of one's own, or all
    of it under ``once_differentiable``) has no second derivative, and torch takes it for zero without a word.
    """
    found: set[str] = set()
    seen: set[object] = set()
    waiting = [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(node, BackwardCFunction):
            found.add(type(node).__name__.removesuffix("Backward"))
        waiting += [parent for parent, _ in node.next_functions]
    return sorted(found)


def check_custom_functions(
    names: Sequence[str],
    weights: Mapping[str, Tensor],
    slopes: Mapping[str, Tensor | None],
    slopes_at: Callable[[dict[str, Tensor]], Mapping[str, Tensor | None]],
) -> None:
    """Compare double backward with differences of gradients, in one direction through all weights at once.

    The direction is the weights themselves with random signs, a cube root of the machine precision long: the length at
    which the errors of a central difference balance (W. H. Press et al., Numerical Recipes, section 5.7).

    Args:
        names: The functions that are in doubt, for messages.
        weights: Layer name to its weight, the leaves of ``slopes``.
        slopes: Layer name to the gradient there, with a graph.
        slopes_at: Gives these gradients at other weights.

    Raises:
        NotImplementedError: If a layer has no second derivative though its gradient changes with the weights.
    """
    generator = torch.Generator().manual_seed(0)
    steps = {}
    for layer, weight in weights.items():
        signs = random_signs(weight.shape, generator, weight.dtype)
        size = torch.finfo(weight.dtype).eps ** (1 / 3)
        steps[layer] = size * weight.detach() * signs.to(weight)
    terms = [(slope * steps[layer]).sum() for layer, slope in slopes.items() if slope is not None]
    along = [term for term in terms if term.requires_grad]
    products: Sequence[Tensor | None] = [None] * len(weights)
    if along:
        products = differentiate("second derivative of the loss", torch.stack(along).sum(), list(weights.values()))
    forth, back = (
        slopes_at({layer: weight.detach() + sign * steps[layer] for layer, weight in weights.items()})
        for sign in (1, -1)
    )
    zero, doubtful = [], []
    for layer, product in zip(weights, products, strict=True):
        ahead, reverse, slope = forth[layer], back[layer], slopes[layer]
        if ahead is None or reverse is None or slope is None:
            continue
        expected = (ahead - reverse) / 2
        found = torch.zeros_like(expected) if product is None else product.detach()
        size, error = float(expected.norm()), float((found - expected).norm())
        if size <= 100 * torch.finfo(slope.dtype).eps * float(slope.norm()):
            continue
        if float(found.norm()) <= 1e-3 * size:
            zero.append(layer)
        elif error > 0.1 * size:
            doubtful.append(f"{layer} ({error / size:.0%})")
    _report(_cause(names), zero, doubtful)


def check_symmetry(names: Sequence[str], rows: Tensor, columns: Mapping[str, slice]) -> None:
    """Check that second derivatives are the same in both orders, as they must be.

    Where a backward hides values from autograd, they are missing in one order and not in the other.

    Args:
        names: The functions that are in doubt, for messages.
        rows: ``D_i^T H D_j`` as differentiated by i last, [K, K].
        columns: Layer name to its candidates.

    Raises:
        NotImplementedError: If they differ.
    """
    scale = float(rows.abs().max())
    for first, second in combinations(columns, 2):
        one, other = rows[columns[first], columns[second]], rows[columns[second], columns[first]].T
        size = max(float(one.norm()), float(other.norm()))
        if float((one - other).norm()) > 0.01 * size + 1e-4 * scale:
            raise NotImplementedError(
                f"{_cause(names)}, and the second derivative of the loss with respect to the weights of {first} and "
                f"{second} depends on the order of the two: {_HIDDEN}"
            )


def _cause(names: Sequence[str]) -> str:
    return f"The custom autograd function(s) {', '.join(names)} stand in the model"


def _report(cause: str, zero: Sequence[str], doubtful: Sequence[str]) -> None:
    """Raise for layers without a second derivative, and warn of those where it is far from the differences."""
    if zero:
        raise NotImplementedError(
            f"{cause}, and the second derivative of the loss with respect to the weights of {', '.join(zero)} comes "
            f"out as zero, though the gradient changes with the weights: {_HIDDEN}"
        )
    if doubtful:
        warn(
            f"{cause}, and second derivatives differ from differences of gradients at {', '.join(doubtful)}: either "
            "their backward uses values that autograd does not follow, or the gradient jumps nearby (ReLU, rounding). "
            f"{_WAYS_OUT} to be sure."
        )
