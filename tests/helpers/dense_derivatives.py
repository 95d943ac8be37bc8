"""Dense float64 references: every derivative by torch.func over one flat vector of all weights."""

from itertools import product

import torch
from helpers.profiles import nearest_candidates
from torch import Tensor, nn
from torch.func import functional_call, hessian, jacrev
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import one_hot

from lightning_mpq.groups.groups import find_groups
from lightning_mpq.network.layer_kinds import rows_to_weight, weight_rows
from lightning_mpq.network.likelihood import Categorical
from lightning_mpq.network.named_weights import named_layers
from lightning_mpq.quantizers import quantize_rows


def measured(model: nn.Module, bits: tuple[int, ...] = (2, 3, 5), **options: object):
    """Return groups, candidates and the dense [W, K] matrix of perturbations, made independently."""
    groups = find_groups(model, **options)  # type: ignore[arg-type]
    candidates = nearest_candidates(groups, bits)
    layers = named_layers(model)
    names = {id(p): name for name, p in model.named_parameters()}
    members = {group.name: group.layers for group in groups}
    columns = []
    for candidate in candidates:
        deltas = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
        for layer in members[candidate.group]:
            weight = layers[layer].weight.detach()
            rows = quantize_rows(weight_rows(layers[layer], weight), candidate.scheme.weight).dequantize().double()
            deltas[names[id(layers[layer].weight)]] = rows_to_weight(layers[layer], rows, weight.shape) - weight
        columns.append(torch.cat([delta.flatten() for delta in deltas.values()]))
    return groups, candidates, torch.stack(columns, 1)


def flat_function(model: nn.Module, function):
    """Return (f, w) such that f(w) = function(model with weights w), in eval mode; padding_idx left out."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    flat = torch.cat([p.flatten() for p in parameters.values()])

    def call(weights: Tensor) -> Tensor:
        pieces = weights.split([p.numel() for p in parameters.values()])
        named = {name: piece.reshape(p.shape) for (name, p), piece in zip(parameters.items(), pieces, strict=True)}
        with sdpa_kernel(SDPBackend.MATH):  # fused attention has no forward-mode derivative
            return function(lambda *inputs: functional_call(model, named, inputs, tie_weights=True))

    return call, flat


def without_padding_index(model: nn.Module) -> nn.Module:
    """padding_idx hides a row from reverse mode, though quantization changes it."""
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.padding_idx = None
    return model.eval()


def dense_jacobian(model: nn.Module, inputs: Tensor) -> Tensor:
    """Return d outputs / d weights, [N, outputs, W]."""
    call, flat = flat_function(without_padding_index(model), lambda net: net(inputs).flatten(1))
    return jacrev(call)(flat)


def dense_hessian(model: nn.Module, loss) -> tuple[Tensor, Tensor]:
    """Return gradient [W] and Hessian [W, W] of ``loss(net)``."""
    call, flat = flat_function(without_padding_index(model), loss)
    return jacrev(call)(flat), hessian(call)(flat)


def categorical_information(logits: Tensor) -> Tensor:
    """Return diag(p) - p p^T of each row of logits, [N, C, C]."""
    p = logits.softmax(-1)
    return torch.diag_embed(p) - p[:, :, None] * p[:, None, :]


class Enumerated(Categorical):
    """Goes through all joint labels of the positions, each scaled so that the mean over draws is the expectation."""

    def __init__(self, class_dim: int = 1) -> None:
        super().__init__(class_dim)
        object.__setattr__(self, "calls", 0)

    def draws(self, outputs: Tensor) -> int:
        classes = outputs.shape[self.class_dim]
        return classes ** (outputs[0].numel() // classes)

    def score(self, outputs: Tensor, batch: object, generator: object) -> Tensor:
        p = outputs.softmax(self.class_dim).movedim(self.class_dim, -1)
        shape, p = p.shape, p.reshape(len(p), -1, p.shape[-1])  # [N, positions, C]
        combinations = list(product(range(p.shape[2]), repeat=p.shape[1]))
        labels = one_hot(torch.tensor(combinations[self.calls % len(combinations)]), p.shape[2]).to(p)
        object.__setattr__(self, "calls", self.calls + 1)
        chance = (p * labels).sum(2).prod(1)
        score = (labels - p) * (chance * len(combinations)).sqrt()[:, None, None]
        return score.reshape(shape).movedim(-1, self.class_dim)
