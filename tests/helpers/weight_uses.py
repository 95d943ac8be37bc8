"""Small networks in which weights are used in every way that the estimators must cope with."""

import torch
from helpers.wrapped_layers import (
    ByHand,
    Centred,
    Routed,
    RoutedAtOnce,
    RoutedByCapacity,
    RoutedInOrder,
    RoutedTransposed,
    SamePadding,
    ScaledEmbedding,
)
from torch import Tensor, nn
from torch.nn.functional import linear, relu

from lightning_mpq.network.named_weights import register_layer


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


class Wrapped(nn.Module):
    """Subclasses that wrap their parent's operation."""

    shape = (2, 5, 5)

    def __init__(self) -> None:
        super().__init__()
        self.first = SamePadding(2, 4, 3, stride=2)
        self.second = SamePadding(4, 4, 3, groups=2, bias=False)
        self.third = ByHand(4, 4)
        self.last = Centred(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.third(self.second(self.first(x).tanh()).tanh().mean((2, 3))).tanh())


class MixtureOfExperts(nn.Module):
    """A scaled embedding, and experts fused to one tensor, which meet tokens of several samples at once."""

    shape = (3,)
    routed_by: type[nn.Module] = Routed

    def __init__(self) -> None:
        super().__init__()
        self.embed = ScaledEmbedding(6, 4)
        self.routed = self.routed_by()
        self.last = nn.Linear(4, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.last(self.routed(self.embed(ids)).mean(1))


class MixtureOfTransposedExperts(MixtureOfExperts):
    """The same, experts being the other way round."""

    routed_by = RoutedTransposed


class MixtureOfBatchedExperts(MixtureOfExperts):
    """The same, all experts at once."""

    routed_by = RoutedAtOnce


class MixtureOfSortedExperts(MixtureOfExperts):
    """The same, tokens being sorted before, so that nothing tells whose they are."""

    routed_by = RoutedInOrder


class MixtureOfChoosyExperts(MixtureOfExperts):
    """The same, experts choosing tokens, as many as there are samples."""

    routed_by = RoutedByCapacity


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
        Wrapped,
        MixtureOfExperts,
        MixtureOfTransposedExperts,
        MixtureOfBatchedExperts,
        MixtureOfSortedExperts,
        MixtureOfChoosyExperts,
    )
}


def make(kind: type[nn.Module], samples: int = 6, classes: int = 3) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """Return a float64 model in train mode and a batch of inputs and labels."""
    torch.manual_seed(0)
    model = kind().double()
    shape = (samples, *model.shape)  # type: ignore[misc]
    inputs = torch.randint(0, 4, shape) if len(model.shape) == 1 else torch.randn(shape, dtype=torch.float64)  # type: ignore[arg-type]
    return model, (inputs, torch.randint(0, classes, (samples,)))
