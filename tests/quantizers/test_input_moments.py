"""Unfolded inputs against the layers' own operation, and moments against plain float64 sums."""

import pytest
import torch
from torch import nn

from lightning_mpq.network.layer_kinds import weight_rows
from lightning_mpq.quantizers.input_moments import InputMoment
from lightning_mpq.quantizers.unfolding import unfold_inputs

LAYERS = {
    "linear": (nn.Linear(5, 3), (4, 5)),
    "linear over positions": (nn.Linear(5, 3), (4, 2, 3, 5)),
    "conv1d": (nn.Conv1d(4, 6, 3, stride=2, padding=1), (2, 4, 9)),
    "conv2d": (nn.Conv2d(3, 4, (3, 2), stride=(1, 2), padding=(1, 0), dilation=(2, 1)), (2, 3, 9, 8)),
    "conv2d same": (nn.Conv2d(2, 4, 4, padding="same"), (2, 2, 7, 6)),
    "conv2d grouped": (nn.Conv2d(4, 6, 3, groups=2), (2, 4, 6, 5)),
    "conv2d depthwise": (nn.Conv2d(4, 8, 3, padding=1, groups=4), (2, 4, 6, 5)),
    "conv2d reflect": (nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), (2, 2, 5, 6)),
    "conv2d circular": (nn.Conv2d(2, 3, 3, padding=(2, 1), padding_mode="circular"), (2, 2, 5, 6)),
    "conv2d replicate": (nn.Conv2d(2, 3, 3, padding="same", padding_mode="replicate"), (2, 2, 5, 6)),
    "conv3d": (nn.Conv3d(2, 4, (1, 2, 3), stride=(1, 2, 1), padding=(0, 1, 1), groups=2), (2, 2, 3, 5, 6)),
    "transposed 1d": (nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1, output_padding=1), (2, 4, 5)),
    "transposed 2d": (nn.ConvTranspose2d(3, 4, (3, 2), stride=(2, 3), padding=(3, 0), dilation=(2, 1)), (2, 3, 5, 4)),
    "transposed 2d grouped": (nn.ConvTranspose2d(4, 6, 3, groups=2, stride=2), (2, 4, 4, 3)),
    "transposed 3d": (nn.ConvTranspose3d(2, 3, 2, stride=(1, 2, 1)), (1, 2, 2, 3, 2)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_rows_times_unfolded_inputs_are_the_layers_outputs(name):
    layer, shape = LAYERS[name]
    layer = layer.double()
    inputs = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    outputs = layer(inputs) - layer(inputs * 0)  # without the bias
    vectors = unfold_inputs(layer, inputs, outputs.shape[2:])
    rows = weight_rows(layer).unflatten(0, (vectors.shape[0], -1))
    products = rows @ vectors.transpose(1, 2)  # groups, rows / groups, N * positions
    channels_first = outputs.movedim(-1 if isinstance(layer, nn.Linear) else 1, 0)
    torch.testing.assert_close(products.flatten(0, 1), channels_first.flatten(1))


@pytest.mark.parametrize("name", LAYERS)
def test_the_moment_is_the_mean_squared_output_of_any_weight(name):
    layer, shape = LAYERS[name]
    layer = layer.float()
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    moment = InputMoment.of_layer(layer)
    outputs = layer(inputs)
    moment.update(layer, inputs, outputs.shape)
    moment.update(layer, 2 * inputs, outputs.shape)
    with torch.no_grad():
        error = weight_rows(layer).double().unflatten(0, (moment.first.shape[0], -1))
        own = layer.double()(inputs.double()) - layer(inputs.double() * 0)
    expected = (
        (own.square().sum() + (2 * own).square().sum())
        * outputs.movedim(-1 if isinstance(layer, nn.Linear) else 1, 0).shape[0]
        / (2 * own.numel())
    )
    torch.testing.assert_close(((error @ moment.matrix()) * error).sum(), expected, rtol=1e-5, atol=0)
    assert moment.count == 2 * outputs.numel() // weight_rows(layer).shape[0]


def test_centred_moment_is_the_covariance():
    layer, data = nn.Linear(6, 2), torch.randn(50, 6) + 3
    moment = InputMoment.of_layer(layer)
    moment.update(layer, data, torch.Size([50, 2]))
    expected = torch.cov(data.double().T, correction=0)
    torch.testing.assert_close(moment.matrix(centred=True)[0], expected, rtol=1e-5, atol=1e-5)


def test_many_inputs_with_a_large_mean_do_not_lose_their_spread():
    """Float32 sums of 200,000 squares near 10^6 err by about as much as the variance is; chunks in float64 do not."""
    layer = nn.Linear(3, 1)
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(200_000, 3, generator=generator) * 2 + 1000
    moment = InputMoment.of_layer(layer)
    for part in data.split(1000):
        moment.update(layer, part, torch.Size([1000, 1]))
    exact = data.double().T @ data.double() / len(data)
    naive = torch.zeros(3, 3)
    for row in data.split(1000):
        naive += row.T @ row
    error = (moment.matrix()[0] - exact).abs().max()
    assert error < 0.25 * (naive.double() / len(data) - exact).abs().max()
    assert error < 0.5  # the variance is 4


def test_huge_and_tiny_inputs_neither_overflow_nor_vanish():
    layer = nn.Linear(2, 1)
    for size in (1e25, 1e-25):
        moment = InputMoment.of_layer(layer)
        moment.update(layer, torch.full((4, 2), size), torch.Size([4, 1]))
        torch.testing.assert_close(moment.matrix()[0], torch.full((2, 2), size, dtype=torch.float64) ** 2)


def test_large_inputs_are_unfolded_in_chunks(monkeypatch):
    layer, data = nn.Conv2d(3, 2, 3, padding=1).double(), torch.randn(9, 3, 5, 5).double()
    whole, cut = InputMoment.of_layer(layer), InputMoment.of_layer(layer)
    whole.update(layer, data, layer(data).shape)
    monkeypatch.setattr("lightning_mpq.quantizers.unfolding._CHUNK_ELEMENTS", 2 * 25 * 27)
    seen = []
    original = unfold_inputs
    monkeypatch.setattr(
        "lightning_mpq.quantizers.unfolding.unfold_inputs", lambda m, x, o: seen.append(len(x)) or original(m, x, o)
    )
    cut.update(layer, data, layer(data).shape)
    assert seen == [2, 2, 2, 2, 1]
    torch.testing.assert_close(cut.matrix(), whole.matrix())


def test_single_samples_count_like_batches_of_one():
    layer, data = nn.Conv2d(3, 2, 3).double(), torch.randn(3, 5, 5).double()
    single, batch = InputMoment.of_layer(layer), InputMoment.of_layer(layer)
    single.update(layer, data, layer(data).shape)
    batch.update(layer, data[None], layer(data[None]).shape)
    torch.testing.assert_close(single.matrix(), batch.matrix())
    assert single.count == batch.count == 9


def test_an_embedding_counts_its_rows():
    layer, tokens = nn.Embedding(5, 3), torch.tensor([[0, 1, 1], [4, 1, 0]])
    moment = InputMoment.of_layer(layer)
    moment.update(layer, tokens, layer(tokens).shape)
    assert moment.row_counts.tolist() == [2, 3, 0, 0, 1]
    torch.testing.assert_close(moment.matrix()[0], torch.eye(3, dtype=torch.float64))


def test_a_shared_weight_sees_the_inputs_of_both_layers():
    embedding, head = nn.Embedding(5, 3), nn.Linear(3, 5)
    tokens, hidden = torch.tensor([0, 1, 1]), torch.randn(4, 3).double()
    by_token, by_product = InputMoment.of_layer(embedding), InputMoment.of_layer(head)
    by_token.update(embedding, tokens, torch.Size([3, 3]))
    by_product.update(head, hidden, torch.Size([4, 5]))
    error = torch.full(
        (5, 3), 0.1, dtype=torch.float64
    )  # the same in every row, so that the average over rows is exact
    for merged in (by_token.merge(by_product), by_product.merge(by_token)):
        total = ((error @ merged.matrix()[0]) * error).sum() * merged.count
        expected = (hidden @ error.T).square().sum() + error[tokens].square().sum()
        torch.testing.assert_close(total, expected)


def test_a_layer_that_was_never_called_has_no_moment():
    assert not InputMoment.of_layer(nn.Linear(3, 2)).matrix().any()
