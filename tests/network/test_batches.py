"""Batches of any shape: moved, counted, cut and described."""

from collections import namedtuple

import pytest
import torch
from torch import nn

from lightning_mpq.network.batches import describe_batch, sample_count, split_batch, to_device
from lightning_mpq.network.forward import device_of


def test_batches_move_to_the_models_device_and_keep_their_shape():
    pair = namedtuple("pair", "x y")
    batch = {"a": pair(torch.ones(1), [torch.ones(2)]), "b": "text"}
    moved = to_device(batch, device_of(nn.Linear(1, 1, device="meta")))
    assert moved["a"].x.device.type == "meta"
    assert moved["a"].y[0].device.type == "meta"
    assert moved["b"] == "text"


@pytest.mark.parametrize(
    ("batch", "count"),
    [
        (torch.ones(4, 2), 4),
        ((torch.ones(4, 2), [torch.ones(4)]), 4),
        ({"a": torch.ones(4), "b": torch.ones(3)}, None),
        ((torch.ones(4), torch.tensor(1.0)), None),
        ("text", None),
    ],
)
def test_samples_are_what_all_tensors_have_in_common(batch, count):
    assert sample_count(batch) == count


def test_a_batch_is_cut_where_its_samples_are_known():
    inputs, labels = torch.arange(10.0).view(5, 2), torch.arange(5)
    pieces = list(split_batch({"x": inputs, "y": labels, "name": "n"}, 2))
    assert [len(piece["y"]) for piece in pieces] == [2, 2, 1]
    assert [len(piece) for piece in split_batch(torch.ones(65, 2), 32)] == [22, 22, 21]
    assert torch.equal(torch.cat([piece["x"] for piece in pieces]), inputs)
    assert {piece["name"] for piece in pieces} == {"n"}
    uneven = (inputs, labels[:3])
    assert [*split_batch(uneven, 2)] == [uneven]
    assert [*split_batch(inputs, None)] == [inputs]


def test_descriptions_name_kinds_types_and_shapes():
    assert describe_batch((torch.zeros(2, 3), [])) == "a tuple of a float32 tensor [2, 3], a list of nothing"
