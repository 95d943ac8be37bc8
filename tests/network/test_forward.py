"""What the default forward takes, and what it says about the rest."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lightning_mpq.errors import NonFiniteError
from lightning_mpq.network.forward import forward_batch


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: (x, 1), lambda x: [x]])
def test_tensors_and_tuples_are_taken_apart(wrap):
    model, inputs = nn.Linear(3, 2), torch.randn(4, 3)
    assert torch.equal(forward_batch(model, wrap(inputs)), model(inputs))


def test_forward_fn_decides():
    model = nn.Linear(3, 2)
    assert forward_batch(model, {"x": torch.ones(1, 3)}, lambda m, b: m(b["x"]) * 0).sum() == 0


@pytest.mark.parametrize(
    ("batch", "said"),
    [({"x": 1}, "a dict with 'x': a int"), ("text", "a str"), ([], "a list"), ((1, 2), "a tuple of a int")],
)
def test_other_batches_are_named_with_the_way_out(batch, said):
    with pytest.raises(TypeError, match=f"batch 3 .*{said}.*forward_fn"):
        forward_batch(nn.Linear(3, 2), batch, number=3)


def test_an_input_that_forward_cannot_take_is_named():
    with pytest.raises(TypeError, match=r"Linear.forward does not take the input of batch 1, torch.float32 \[4, 5\]"):
        forward_batch(nn.Linear(3, 2), torch.zeros(4, 5))


@pytest.mark.parametrize("error", [ValueError, KeyError, AttributeError, NotImplementedError, IndexError, RuntimeError])
def test_whatever_forward_raises_is_said_with_the_way_out(error):
    class Picky(nn.Module):
        def forward(self, x):
            raise error("expected pixel_values")

    with pytest.raises(TypeError, match=r"Picky.forward does not take .* batch 2, .*expected pixel_values.*forward_fn"):
        forward_batch(Picky(), torch.zeros(4, 5), number=2)


def test_a_value_that_is_not_finite_is_no_fault_of_the_batch():
    class Diverged(nn.Linear):
        def forward(self, x):
            raise NonFiniteError("layer is NaN in batch 1")

    with pytest.raises(NonFiniteError):
        forward_batch(Diverged(5, 2), torch.zeros(4, 5))


class EncoderDecoder(nn.Module):
    """Makes its decoder's inputs of the labels, as transformers does."""

    config = SimpleNamespace(is_encoder_decoder=True)

    def forward(self, input_ids, labels=None, decoder_input_ids=None):
        if (labels is None) is (decoder_input_ids is None):
            raise ValueError("expected labels or decoder_input_ids")
        return input_ids.float()


class ByName(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = EncoderDecoder()

    def forward(self, input_ids, labels=None, decoder_input_ids=None):
        return self.net(input_ids, labels, decoder_input_ids)


class ByAnyName(ByName):
    def forward(self, **batch):
        return self.net(**batch)


@pytest.mark.parametrize("model", [EncoderDecoder(), ByName(), ByAnyName()])
@pytest.mark.parametrize("given", [("labels",), ("labels", "decoder_input_ids")])
def test_a_decoder_gets_its_inputs_also_inside_of_a_users_module(model, given):
    ids = torch.zeros(2, 3, dtype=torch.long)
    assert forward_batch(model, {"input_ids": ids, **dict.fromkeys(given, ids)}).shape == (2, 3)
