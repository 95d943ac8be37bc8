"""What other tools predict a candidate to cost, layer by layer, as scores that are added up.

Each is written from its publication, without the tool around it, so that all predict the very same candidates:

- ``hawq``: mean Hessian trace times squared weight error (Z. Dong et al., HAWQ-V2, NeurIPS 2020, equation 4).
- ``weight_error``: squared weight error alone.
- ``gradient_error``: sum of |gradient x weight error| (AutoRound's AutoScheme; W. Cheng et al., arXiv:2512.04746).
- ``output_error``: squared loss gradient of a layer's output times squared output error, summed (the "gradient" score
  of NVIDIA Model Optimizer's auto_quantize).

What stands in results is measured by us with these formulas; no figure is taken from a publication.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_mpq import TaylorModel
from lightning_mpq.network.layer_kinds import apply_weight
from lightning_mpq.rounding.rounded_weights import RoundedWeights

from ..tools.accuracy import Images
from .weight_errors import weight_errors, weight_of

UNITLESS = ("weight_error", "gradient_error", "output_error")
"""Scores that rank candidates, but are no loss in nats."""
_PROBES = 16
Loss = Callable[[Tensor, Tensor], Tensor]


def additive_scores(
    model: nn.Module,
    batches: Images,
    taylor: TaylorModel,
    rounded: RoundedWeights | None,
    seed: int = 0,
    loss: Loss = cross_entropy,
) -> dict[str, Tensor]:
    """Return the scores of all candidates, [K] float64, by name of the method.

    Args:
        model: The float model; each group must be one layer.
        batches: Calibration images and labels.
        taylor: Holds groups and candidates.
        rounded: The rounded weights; None if all are rounded to nearest.
        seed: Seed of the trace's random directions.
        loss: (Outputs, labels) to the mean loss of samples; by default labels are classes.
    """
    errors = weight_errors(model, taylor, rounded)
    layers = {group.name: model.get_submodule(group.layers[0]) for group in taylor.groups}
    weights = {name: weight_of(layer) for name, layer in layers.items()}
    gradient = _gradients(model, batches, weights, loss)
    trace = _mean_traces(model, batches, weights, seed, loss)
    names = [candidate.group for candidate in taylor.candidates]
    return {
        "hawq": _stack(trace[name] * error.square().sum() / 2 for name, error in zip(names, errors, strict=True)),
        "weight_error": _stack(error.square().sum() for error in errors),
        "gradient_error": _stack(
            (gradient[name] * error).abs().sum() for name, error in zip(names, errors, strict=True)
        ),
        "output_error": _output_errors(model, batches, layers, taylor, errors, loss),
    }


def _stack(values: Any) -> Tensor:
    return torch.stack([value.double() for value in values])


def _gradients(model: nn.Module, batches: Images, weights: Mapping[str, Tensor], loss: Loss) -> dict[str, Tensor]:
    """Return the mean gradient of the task loss for each weight."""
    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    samples = sum(len(labels) for _, labels in batches)
    for images, labels in batches:
        part = loss(model(images), labels) * (len(labels) / samples)
        for name, gradient in zip(weights, torch.autograd.grad(part, list(weights.values())), strict=True):
            total[name] += gradient
    return total


def _mean_traces(
    model: nn.Module, batches: Images, weights: Mapping[str, Tensor], seed: int, loss: Loss = cross_entropy
) -> dict[str, Tensor]:
    """Return each layer's Hessian trace over its number of weights, by Hutchinson's estimator."""
    generator = Generator().manual_seed(seed)
    total = {name: torch.zeros((), dtype=torch.float64) for name in weights}
    for number in range(_PROBES):
        images, labels = batches[number % len(batches)]
        gradients = torch.autograd.grad(loss(model(images), labels), list(weights.values()), create_graph=True)
        probes = [torch.randint(0, 2, g.shape, generator=generator).to(g) * 2 - 1 for g in gradients]
        products = torch.autograd.grad(gradients, list(weights.values()), probes)
        for name, probe, product in zip(weights, probes, products, strict=True):
            total[name] += (probe * product).double().sum() / (_PROBES * probe.numel())
    return total


def _output_errors(
    model: nn.Module,
    batches: Images,
    layers: Mapping[str, nn.Module],
    taylor: TaylorModel,
    errors: list[Tensor],
    loss: Loss,
) -> Tensor:
    """Return the sum over outputs of squared gradient times squared output error, per sample, of each candidate."""
    scores = torch.zeros(len(errors), dtype=torch.float64)
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            inputs[name], outputs[name] = args[0].detach(), output

        return hook

    handles = [layer.register_forward_hook(keep(name)) for name, layer in layers.items()]
    try:
        for images, labels in batches:
            total = loss(model(images), labels) * len(labels)
            found = torch.autograd.grad(total, [outputs[name] for name in layers])
            gradients = dict(zip(layers, found, strict=True))
            with torch.no_grad():
                for index, candidate in enumerate(taylor.candidates):
                    name = candidate.group
                    change = apply_weight(layers[name], errors[index], inputs[name])
                    scores[index] += float((change * gradients[name]).square().sum())
    finally:
        for handle in handles:
            handle.remove()
    return scores / sum(len(labels) for _, labels in batches)
