"""The weights of a model as variables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from ...network.named_weights import standing_in
from ...tools.attributes import shadowed
from ...tools.clean_up import afterwards
from ...tools.slices import slices
from .input_probes import InputProbes
from .perturbation import Perturbations

_CHUNK_ELEMENTS = 2**20
"""Values of a gradient that are widened to float64 at once (8 MiB)."""


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
            total[list(known), perturbations.columns[layer]] += _with_layer(perturbations, layer, list(known.values()))
    return total


def _with_layer(perturbations: Perturbations, layer: str, gradients: Sequence[Tensor]) -> Tensor:
    """Return the inner products of gradients of one weight, flattened, with its perturbations, [M, B]."""
    wide = torch.float32 if gradients[0].device.type == "mps" else torch.float64
    found: list[Tensor] = []
    for _, deltas in perturbations.chunks(layer):
        for delta in deltas.flatten(1):
            parts = slices(len(delta), _CHUNK_ELEMENTS)
            found.append(sum(torch.stack([g[p] for g in gradients]).to(wide) @ delta[p].to(wide) for p in parts))
        del deltas, delta  # before the next ones are made
    return torch.stack(found, 1)


def scores_of_backward(
    perturbations: Perturbations,
    variables: Mapping[str, Tensor],
    probes: InputProbes,
    outputs: Tensor,
    slope: Tensor,
    again: bool = False,
) -> Tensor:
    """Return what `all_scores` does of one backward pass, in which no more than a few weight gradients stand at once.

    Args:
        perturbations: Those of weights.
        variables: What `weight_variables` returned.
        probes: Variables of the inputs.
        outputs: Computed with both.
        slope: Gradient of the outputs.
        again: Whether there will be another backward pass.

    Returns:
        [K].
    """
    names = {id(variable): layer for layer, variable in variables.items()}
    wide = torch.float32 if outputs.device.type == "mps" else torch.float64
    total = torch.zeros(perturbations.count, dtype=wide, device=outputs.device)

    def use(variable: Tensor) -> None:
        layer, gradient = names[id(variable)], variable.grad
        assert gradient is not None
        variable.grad = None
        total[perturbations.columns[layer]] += _with_layer(perturbations, layer, [gradient.flatten()])[0].to(total)

    handles = [variable.register_post_accumulate_grad_hook(use) for variable in variables.values()]
    try:
        torch.autograd.backward(outputs, slope, retain_graph=again, inputs=[*variables.values(), *probes.leaves])
    finally:
        for handle in handles:
            handle.remove()
    of_inputs = probes.scores([[leaf.grad for leaf in probes.leaves]])[0].to(total)
    for leaf in probes.leaves:
        leaf.grad = None
    return torch.cat([total, of_inputs])


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
