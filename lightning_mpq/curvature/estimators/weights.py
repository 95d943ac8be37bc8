"""The weights of a model as variables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from ...network.named_weights import standing_in
from ...tools.attributes import shadowed
from ...tools.clean_up import afterwards
from .input_probes import InputProbes
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
    stack = ExitStack()
    with afterwards(stack.close):
        for leader, weight in weights.items():
            for layer in perturbations.tied(leader):
                module = perturbations.modules[layer]
                stack.enter_context(standing_in(module, weight))
                if isinstance(module, nn.Embedding):
                    stack.enter_context(shadowed(module, padding_idx=None, scale_grad_by_freq=False, sparse=False))
        yield


def weight_variables(perturbations: Perturbations) -> dict[str, Tensor]:
    """Return leading layer name to its weight as a fresh leaf that requires a gradient (no copy)."""
    return {layer: perturbations.weight(layer).requires_grad_() for layer in perturbations.leaders}


def inner_products(perturbations: Perturbations, gradients: Sequence[Sequence[Tensor | None]]) -> Tensor:
    """Return the inner products of weight gradients with all perturbations.

    Args:
        perturbations: All candidates.
        gradients: M gradients, each in the order of `weight_variables`; None where a weight has none.

    Returns:
        [M, K], float64 where the device has it.
    """
    device = next(iter(perturbations.modules.values())).weight.device
    assert isinstance(device, torch.device)
    wide = torch.float32 if device.type == "mps" else torch.float64
    total = torch.zeros(len(gradients), perturbations.count, dtype=wide, device=device)
    for layer, slopes in zip(perturbations.leaders, zip(*gradients, strict=True), strict=True):
        known = {row: slope.detach().flatten() for row, slope in enumerate(slopes) if slope is not None}
        if known:
            own = torch.stack(list(known.values())).to(wide)
            for columns, deltas in perturbations.chunks(layer):
                for column, delta in enumerate(deltas.flatten(1), columns.start):
                    total[list(known), column] += own @ delta.to(wide)
    return total


def all_scores(
    perturbations: Perturbations, probes: InputProbes, gradients: Sequence[Sequence[Tensor | None]]
) -> Tensor:
    """Return the scores along all weights, and after them along all inputs, [M, K].

    Args:
        perturbations: Those of weights.
        probes: Variables of the inputs.
        gradients: M gradients, each in the order of `weight_variables` and then of the probes' leaves.
    """
    count = len(perturbations.leaders)
    weights = inner_products(perturbations, [parts[:count] for parts in gradients])
    return torch.cat([weights, probes.scores([parts[count:] for parts in gradients]).to(weights)], 1)


def twice_differentiable(model: nn.Module) -> bool:
    """Tell whether second derivatives can be trusted: those through weight_norm are silently wrong in torch."""
    return not any(
        "weight_g" in module._parameters
        or any("WeightNorm" in type(p).__name__ for p in module.modules() if p is not module)
        for module in model.modules()
    )
