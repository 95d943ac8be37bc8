"""The plain way to stop at layers, one pass for each, and the order in which layers are called."""

import torch
from helpers.networks import mlp, vectors
from torch import nn

from lightning_mpq.network.calibration import Calibration
from lightning_mpq.network.layerwise import LayerwiseForward, order_of_calls


def test_a_pass_that_does_not_come_to_a_layer_stops_nowhere():
    model = mlp(6, 4, 2)
    layers = {"0": model[0], "lost": nn.Linear(2, 2)}
    with LayerwiseForward(Calibration(model, vectors(2)), layers, "after") as passes:
        assert list(passes.at("lost")) == [None]


def test_the_order_of_calls_counts_repetitions():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model.append(model[0])
    assert order_of_calls(Calibration(model, ()), torch.zeros(1, 2), {"1": model[1], "0": model[0]}) == ["0", "1", "0"]
