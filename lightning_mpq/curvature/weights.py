"""The weights of a model as variables: other tensors stand in for them while the model runs unchanged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn

from .isolation import shadowed
from .perturbation import Perturbations


@contextmanager
def substituted(perturbations: Perturbations, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Let tensors stand in for the weights of layers, and of all layers tied to them.

    Uses outside of the layer, such as ``F.linear(x, self.embedding.weight)``, see them too. Embeddings forget
    their ``padding_idx`` and such for that time: those change gradients only, and a perturbation touches every row.

    Args:
        perturbations: Knows the layers and which are tied.
        weights: Leading layer name to the tensor that takes the place of its weight.
    """
    with ExitStack() as stack:
        for leader, weight in weights.items():
            for layer in perturbations.tied(leader):
                module = perturbations.modules[layer]
                stack.enter_context(shadowed(module, weight=weight))
                if isinstance(module, nn.Embedding):
                    stack.enter_context(shadowed(module, padding_idx=None, scale_grad_by_freq=False, sparse=False))
        yield


def weight_variables(perturbations: Perturbations) -> dict[str, Tensor]:
    """Return leading layer name to its weight as a fresh leaf that requires a gradient (no copy)."""
    return {layer: perturbations.weight(layer).requires_grad_() for layer in perturbations.leaders}
