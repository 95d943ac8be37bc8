"""Outputs by name, batches by name, and what is made of both."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from lightning_mpq.network.calibration import Calibration
from lightning_mpq.network.evaluator import Evaluator
from lightning_mpq.network.forward import forward_batch
from lightning_mpq.network.guessed_likelihood import guess_likelihood
from lightning_mpq.network.likelihood import Categorical, Gaussian
from lightning_mpq.network.outputs import NamedOutputs


def test_the_tensor_that_is_meant_is_found_by_name():
    logits, hidden = torch.ones(2, 3), torch.zeros(2, 4, 5)
    assert NamedOutputs.of({"last_hidden_state": hidden, "logits": logits}).value is logits
    assert NamedOutputs.of(SimpleNamespace(logits=None, last_hidden_state=hidden)) == (hidden, "last_hidden_state")
    assert NamedOutputs.of(logits).name is None
    assert NamedOutputs.of((logits,)).value == (logits,)


class ByName(nn.Module):
    def forward(self, ids: Tensor, mask: Tensor | None = None, **others: Tensor) -> list[str]:
        return sorted(["ids"] * (ids is not None) + ["mask"] * (mask is not None) + list(others))


class OnTheBatch(nn.Module):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return batch["image"] + 1


def test_a_mapping_goes_to_the_arguments_of_its_names():
    x = torch.ones(2, 3)
    assert forward_batch(ByName(), {"ids": x, "mask": x, "extra": x, "labels": x, "name": "x"}) == [
        "extra",
        "ids",
        "mask",
    ]
    assert forward_batch(ByName(), ({"ids": x}, x)) == ["ids"]
    assert torch.equal(forward_batch(OnTheBatch(), {"image": x, "labels": x}), x + 1)
    with pytest.raises(TypeError, match="Linear.forward does not take the input of batch 1, a dict with 'image'"):
        forward_batch(nn.Linear(3, 2), {"image": x})


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)

    def forward(self, input_ids: Tensor) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=self.embed(input_ids))


def test_a_last_hidden_state_is_taken_with_one_word():
    batch = {"input_ids": torch.zeros(2, 3, dtype=torch.long)}
    evaluator = Evaluator(Calibration(Encoder(), [batch]))
    with pytest.warns(UserWarning, match="Encoder returns no 'logits'; its 'last_hidden_state' is measured") as found:
        outputs = [evaluator.outputs(batch) for _ in range(2)][0]
    assert len(found) == 1
    assert evaluator.output_name == "last_hidden_state"
    assert outputs.shape == (2, 3, 4)


TOKENS = {"input_ids": torch.zeros(2, 3, dtype=torch.long), "attention_mask": torch.ones(2, 3, dtype=torch.long)}
LONG = torch.zeros(2, 3, dtype=torch.long)


@pytest.mark.filterwarnings("ignore:likelihood='auto' took")
@pytest.mark.parametrize(
    ("shape", "batch", "name", "expected"),
    [
        ((2, 3, 9), TOKENS, "logits", Categorical(class_dim=-1)),
        ((2, 3, 3), {**TOKENS, "labels": LONG}, "logits", Categorical(class_dim=-1)),
        ((2, 9), TOKENS, "logits", Categorical()),
        ((2, 3, 9), TOKENS, "last_hidden_state", Gaussian()),
        ((2, 9), torch.zeros(2, 5), None, Categorical()),
        ((2, 1), torch.zeros(2, 5), None, Gaussian()),
    ],
)
def test_auto_is_right(shape, batch, name, expected):
    torch.manual_seed(0)
    assert guess_likelihood(torch.randn(shape), batch, name) == expected


@pytest.mark.parametrize(
    ("outputs", "batch", "name"),
    [
        (torch.randn(2, 9), TOKENS, None),  # logits, or an embedding of a text
        (torch.randn(2, 1), TOKENS, "logits"),  # a value, or yes and no
        (torch.randn(2, 3, 3), (torch.zeros(2, 5), LONG), None),  # as many positions as classes
        (torch.randn(2, 9), torch.zeros(2, 9), None),  # an autoencoder?
        (nn.functional.normalize(torch.randn(2, 9), dim=1), torch.zeros(2, 5), None),  # embeddings
        (torch.randn(2, 3), (torch.zeros(2, 5), torch.eye(3)[:2]), None),  # one-hot, or several of yes and no
    ],
)
def test_auto_asks_where_it_could_be_one_or_the_other(outputs, batch, name):
    with pytest.raises(ValueError, match="cannot tell what outputs .* Gaussian\\(\\) for embeddings"):
        guess_likelihood(outputs, batch, name)
