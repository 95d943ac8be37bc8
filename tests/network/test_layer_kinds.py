"""How each layer type uses its weight: a row is what one output channel reads."""

import pytest
import torch
from torch import nn

from lightning_mpq.network.layer_kinds import rows_and_columns, rows_to_weight, weight_rows

LAYERS = [
    lambda: nn.Linear(3, 4),
    lambda: nn.Conv1d(4, 6, 3, groups=2),
    lambda: nn.Conv3d(2, 3, 2),
    lambda: nn.ConvTranspose1d(4, 6, 3, groups=2),
    lambda: nn.ConvTranspose2d(4, 6, 3),
    lambda: nn.ConvTranspose3d(2, 3, 2),
]


@pytest.mark.parametrize("make", [*LAYERS, lambda: nn.Embedding(5, 3)])
def test_the_layout_goes_there_and_back(make):
    layer = make()
    rows = weight_rows(layer)
    assert tuple(rows.shape) == rows_and_columns(layer)
    assert torch.equal(rows_to_weight(layer, rows, layer.weight.shape), layer.weight)


@pytest.mark.parametrize("make", LAYERS)
def test_a_row_holds_exactly_what_one_output_channel_uses(make):
    """Zeroing row r must silence output channel r and no other."""
    torch.manual_seed(0)
    layer = make()
    weight, rows = layer.weight.detach(), weight_rows(layer)
    channels = getattr(layer, "in_channels", None) or layer.in_features
    inputs = torch.rand(1, channels, *([5] * (weight.dim() - 2)))
    for row in range(len(rows)):
        silenced = rows.detach().clone()
        silenced[row] = 0
        layer.weight.data = rows_to_weight(layer, silenced, weight.shape)
        output = layer(inputs) - layer.bias.reshape(1, -1, *([1] * (weight.dim() - 2)))
        quiet = output.abs().flatten(2).amax((0, 2)) if output.dim() > 2 else output.abs().amax(0)
        assert [int(c) for c in (quiet < 1e-6).nonzero()] == [row]
