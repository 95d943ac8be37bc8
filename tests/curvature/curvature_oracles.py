"""Dense float64 references: every derivative by torch.func over one flat vector of all weights."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian, jacrev
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import linear, one_hot, relu

from lightning_mpq.candidates import make_candidates
from lightning_mpq.curvature import Categorical
from lightning_mpq.groups import find_groups
from lightning_mpq.held_weights import named_layers, register_layer
from lightning_mpq.layers import rows_to_weight, weight_rows
from lightning_mpq.quantizers import quantize_rows


class Convolutions(nn.Module):
    """Grouped, strided, dilated and circularly padded Conv2d, and a transposed one in groups."""

    shape = (4, 6, 6)

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
        self.norm = nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 4, (3, 2), padding=(2, 1), dilation=(2, 1), padding_mode="circular")
        self.third = nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2, dilation=(1, 2))
        self.last = nn.Linear(6, 3)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x)).tanh()
        x = self.third(self.second(x).tanh()).tanh()
        return self.last(x.mean((2, 3)))


class OneAndThreeDimensions(nn.Module):
    """Conv1d with reflecting and "same" padding, Conv3d, ConvTranspose1d and ConvTranspose3d."""

    shape = (2, 8)

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv1d(2, 4, 3, padding=2, padding_mode="reflect")
        self.same = nn.Conv1d(4, 4, 4, padding="same", dilation=2, groups=4)
        self.up = nn.ConvTranspose1d(4, 2, 3, stride=2)
        self.three = nn.Conv3d(1, 2, (1, 2, 3), padding=(0, 1, 1), stride=(1, 1, 2))
        self.deep = nn.ConvTranspose3d(2, 1, (1, 2, 2), stride=2)
        self.last = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(self.same(self.one(x)).tanh()).tanh()
        x = self.three(x[:, None, None, :, :12]).tanh()
        x = self.deep(x, output_size=[2 * size for size in x.shape[2:]])
        return self.last(x.tanh().flatten(1)[:, :8].unflatten(1, (2, 4)).sum(1))


class TiedLanguageModel(nn.Module):
    """Embedding with a padding index, tied to the output layer; a layer called twice; positions folded into rows."""

    shape = (5,)

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(4, 6, padding_idx=0)
        self.twice = nn.Linear(6, 6)
        self.folded = nn.Linear(6, 6)
        self.out = nn.Linear(6, 4, bias=False)
        nn.init.normal_(self.embed.weight)
        self.out.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        x = self.twice(self.twice(x).tanh()).tanh()
        x = self.folded(x.reshape(-1, 6)).reshape(x.shape).tanh()
        return self.out(x.mean(1))


class HiddenUses(nn.Module):
    """What layer calls alone do not show: a weight used outside its layer, positions without samples, time first."""

    shape = (3,)

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.position = nn.Embedding(3, 4)
        self.time_first = nn.Linear(4, 4)
        self.plain = nn.Linear(4, 4)
        self.last = nn.Linear(5, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) + self.position(torch.arange(3))
        x = self.time_first(x.transpose(0, 1)).tanh().transpose(0, 1)
        x = relu(self.plain(x.mean(1)))
        return self.last(linear(x, self.embed.weight).tanh())


class Transformer(nn.Module):
    """An encoder layer and an LSTM."""

    shape = (3,)

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.encoder = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.5, batch_first=True)
        self.recurrent = nn.LSTM(4, 3, batch_first=True)
        self.last = nn.Linear(3, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.last(self.recurrent(self.encoder(self.embed(ids)))[0].mean(1))


class Attention(nn.Module):
    """Positions first: masked self-attention, then attention to keys and values of other widths."""

    shape = (3, 4)

    def __init__(self) -> None:
        super().__init__()
        self.own = nn.MultiheadAttention(4, 2)
        self.across = nn.MultiheadAttention(4, 1, kdim=3, vdim=2, add_bias_kv=True, batch_first=True)
        self.last = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = x.transpose(0, 1)
        y = self.own(y, y, y, attn_mask=torch.ones(3, 3).triu(1).bool())[0].transpose(0, 1)
        y = y + self.across(y, x[:, 1:, :3].tanh(), x[:, 1:, 2:], need_weights=False)[0]
        return self.last(y.tanh().mean(1))


class Decoder(nn.Module):
    """A decoder layer with the norms first, whose keys are its values but not its queries, and recurrent layers."""

    shape = (3, 2)

    def __init__(self) -> None:
        super().__init__()
        self.memory = nn.Linear(2, 4)
        self.decoder = nn.TransformerDecoderLayer(4, 2, 3, norm_first=True, batch_first=True)
        self.both_ways = nn.GRU(4, 1, num_layers=2, bidirectional=True)
        self.cell = nn.LSTMCell(2, 2, bias=False)
        self.last = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.memory(x)
        x = self.both_ways(self.decoder(x[:, :2], x).transpose(0, 1))[0]
        state = self.cell(x[0])
        return self.last(self.cell(x[1], state)[0])


class Rolled(nn.Module):
    """A layer of one's own, linear in its weight, whose output channels lie along dimension 1; it has an offset."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs))
        self.offset = nn.Parameter(torch.randn(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return x.roll(1, -1) @ self.weight + self.offset + x[..., :1]


class Factors(nn.Module):
    """Two weights, the output linear in each of them."""

    def __init__(self, inputs: int, inner: int, outputs: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(inner, inputs))
        self.up = nn.Parameter(torch.randn(outputs, inner))

    def forward(self, x: Tensor) -> Tensor:
        return linear(linear(x, self.down), self.up)


class Squared(nn.Module):
    """A layer of one's own that is not linear in its weight."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight.square().sin())


register_layer(Rolled, output_dim=1)
register_layer(Factors, ["down", "up"])
register_layer(Squared, linear=False)


class Registered(nn.Module):
    """Layers of the user's own, and a bilinear one."""

    shape = (2, 4)

    def __init__(self) -> None:
        super().__init__()
        self.rolled = Rolled(4, 3)
        self.factors = Factors(3, 2, 3)
        self.squared = Squared(3, 3)
        self.bilinear = nn.Bilinear(3, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.rolled(x).tanh()
        return self.bilinear(self.squared(x).mean(1), self.factors(self.factors(x).tanh()).mean(1))


MODELS = {
    kind.__name__: kind
    for kind in (
        Convolutions,
        OneAndThreeDimensions,
        TiedLanguageModel,
        HiddenUses,
        Transformer,
        Attention,
        Decoder,
        Registered,
    )
}


def make(kind: type[nn.Module], samples: int = 6, classes: int = 3) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """Return a float64 model in train mode and a batch of inputs and labels."""
    torch.manual_seed(0)
    model = kind().double()
    shape = (samples, *model.shape)  # type: ignore[misc]
    inputs = torch.randint(0, 4, shape) if len(model.shape) == 1 else torch.randn(shape, dtype=torch.float64)  # type: ignore[arg-type]
    return model, (inputs, torch.randint(0, classes, (samples,)))


def measured(model: nn.Module, bits: tuple[int, ...] = (2, 3, 5), **options: object):
    """Return groups, candidates and the dense [W, K] matrix of perturbations, made independently."""
    groups = find_groups(model, **options)  # type: ignore[arg-type]
    candidates = make_candidates(groups, bits)
    layers = named_layers(model)
    names = {id(p): name for name, p in model.named_parameters()}
    members = {group.name: group.layers for group in groups}
    columns = []
    for candidate in candidates:
        deltas = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
        for layer in members[candidate.group]:
            weight = layers[layer].weight.detach()
            rows = quantize_rows(weight_rows(layers[layer], weight), candidate.scheme).dequantize().double()
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
