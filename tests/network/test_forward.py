"""What the default forward takes, and what it says about the rest."""

import pytest
import torch
from torch import nn

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
