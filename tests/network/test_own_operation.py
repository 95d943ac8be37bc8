"""Subclasses that wrap their parent's operation: which are known, by what they do or by a word, and what they get."""

import sys
from types import SimpleNamespace

import pytest
import torch
from helpers.wrapped_layers import (
    Activated,
    ByHand,
    Centred,
    Moody,
    PaddedByArgument,
    Reflected,
    SamePadding,
    ScaledEmbedding,
    Scored,
    Shifted,
    Standardized,
    WrongWay,
)
from torch import Tensor, nn

from lightning_mpq.groups.groups import find_groups
from lightning_mpq.network.layer_calls import LayerCall, watched
from lightning_mpq.network.layer_kinds import float_class, kind_of, rows_and_columns, weight_rows
from lightning_mpq.network.named_weights import register_layer
from lightning_mpq.network.own_operation import DECLARED
from lightning_mpq.repair.output_means import output_means


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        (SamePadding(2, 4, 3, stride=2), nn.Conv2d),
        (Centred(4, 3), nn.Linear),
        (ScaledEmbedding(5, 4), nn.Embedding),
        (Activated(4, 3, bias=False), nn.Linear),
        (ByHand(4, 3), nn.Linear),
        (ByHand(4, 3, bias=False), nn.Linear),
        (ByHand(4, 4), nn.Linear),
        (Scored(4, 3, bias=False), nn.Linear),
        (Scored(4, 3), None),
        (Reflected(4, 3, bias=False), None),
        (Shifted(4, 3, bias=False), None),
        (WrongWay(4, 4, bias=False), None),
        (Activated(4, 3), None),
        (Standardized(2, 4, 3), None),
        (PaddedByArgument(2, 4, 3), None),
        (Moody(2, 4, 3), None),
    ],
)
def test_what_can_be_seen_to_wrap_an_operation_is_known_and_left_as_it_was(layer, kind):
    layer.train()
    before = dict(layer.__dict__)
    assert float_class(layer) is kind
    assert layer.__dict__ == before
    assert layer.weight.device.type == "cpu"


def test_a_wrapper_is_seen_with_the_inputs_of_the_operation():
    layer, seen = SamePadding(2, 4, 3, stride=2), list[LayerCall]()

    def note(call: LayerCall, output: Tensor) -> Tensor:
        seen.append(call)
        return 2 * output

    x = torch.randn(1, 2, 5, 5)
    model, expected = nn.Sequential(layer), layer(x)
    with watched(model, {"0": layer}, note):
        assert torch.equal(model(x), 2 * expected)
    assert torch.equal(model(x), expected)
    (call,) = seen
    assert call.inputs.shape == (1, 2, 7, 7)


class Home(nn.Module):
    """A linear layer of one's own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x.flip(-1), self.weight).tanh()


def test_a_word_makes_known_what_a_try_cannot_see(monkeypatch):
    for kind in (Moody, Home):
        monkeypatch.setitem(DECLARED, kind, nn.Linear)  # taken back after the test
    register_layer(Moody, like=nn.Conv2d)
    register_layer(Home, like=nn.Linear)
    assert [float_class(layer) for layer in (Moody(2, 4, 3), Home())] == [nn.Conv2d, nn.Linear]
    assert find_groups(nn.Sequential(Home(), nn.Tanh(), nn.Linear(3, 3)))[0].shapes == ((3, 4),)
    reason = output_means(nn.Sequential(Moody(2, 4, 3)), [torch.ones(1, 2, 5, 5)]).skipped["0"]
    assert reason == "what it does after the operation that it wraps is not known"
    register_layer(Home, linear=False)
    kind = kind_of(Home())
    assert kind is not None
    assert kind.operation == "nonlinear"


def test_what_cannot_be_alike_is_refused():
    with pytest.raises(ValueError, match="like must be one of Linear, Conv1d, Conv2d, Conv3d, Embedding"):
        register_layer(Home, like=nn.LSTM)
    with pytest.raises(ValueError, match="one weight called 'weight'"):
        register_layer(Home, ["own"], like=nn.Linear)
    with pytest.raises(TypeError, match="Home is no subclass of Conv2d"):
        register_layer(Home, like=nn.Conv2d)


def test_the_transposed_linear_layer_of_transformers_is_known_once_somebody_has_imported_it(monkeypatch):
    class Conv1D(nn.Module):
        def __init__(self, outputs: int, inputs: int) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(inputs, outputs))
            self.bias = nn.Parameter(torch.randn(outputs))

        def forward(self, x: Tensor) -> Tensor:
            return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.shape[:-1], -1)

    layer = Conv1D(3, 4)
    assert kind_of(layer) is None
    monkeypatch.setitem(sys.modules, "transformers.pytorch_utils", SimpleNamespace(Conv1D=Conv1D))
    assert rows_and_columns(layer) == (3, 4)
    x = torch.randn(2, 5, 4)
    torch.testing.assert_close(x @ weight_rows(layer).T + layer.bias, layer(x))
