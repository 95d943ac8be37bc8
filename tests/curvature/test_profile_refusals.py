"""What `profile` cannot take is refused in clear words, and what it guesses about outputs is said."""

import pytest
import torch
from helpers.padded_tokens import padded, tagger
from helpers.profile_cases import QUICK, Module, batches, small
from helpers.profiles import plain_profile
from helpers.taylor_models import make_taylor
from torch import nn
from torch.nn.functional import cross_entropy

from lightning_mpq.allocation import Budget, allocate
from lightning_mpq.errors import NonFiniteError
from lightning_mpq.groups.groups import find_groups
from lightning_mpq.network.likelihood import Categorical, Gaussian


class TakesTwo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x, mask):
        return self.layer(x) * mask


class Dictionary(TakesTwo):
    def forward(self, x):
        return {"scores": self.layer(x)}


class Batchless(TakesTwo):
    def forward(self, x):
        return self.layer(x).sum()


class Probabilities(TakesTwo):
    def forward(self, x):
        return self.layer(x).softmax(1)


@pytest.mark.parametrize(
    ("model", "data", "options", "error", "words"),
    [
        (small(), [], {}, ValueError, "batches is empty"),
        (small(), [{"x": torch.zeros(2, 4)}], {}, TypeError, "Pass forward_fn"),
        (small(), ["text"], {}, TypeError, "Pass forward_fn"),
        (TakesTwo(), [torch.zeros(2, 4)], {}, TypeError, "TakesTwo.*Pass forward_fn"),
        (Dictionary(), [torch.zeros(2, 4)], {}, TypeError, "one floating-point tensor.*'scores'.*Pass forward_fn"),
        (Batchless(), [torch.zeros(2, 4)], {}, TypeError, "samples along dimension 0"),
        (Probabilities(), [torch.zeros(2, 4)], {"likelihood": "auto"}, ValueError, "look like probabilities"),
        (small(), [torch.zeros(2, 4)], {"loss": "task"}, TypeError, "Sequential has no training_step.*loss_fn"),
        (small(), [torch.zeros(2, 4)], {"estimator": "exact"}, ValueError, "'fisher'.*'hessian'.*got 'exact'"),
        (small(), [torch.zeros(2, 4)], {"loss": "mse"}, ValueError, "'divergence', 'task', got 'mse'"),
        (small(), [torch.zeros(2, 4)], {"draws": 0}, ValueError, "positive integers, got 0"),
        (nn.ReLU(), [torch.zeros(2, 4)], {}, ValueError, "no layer to quantize"),
        (small(), [torch.zeros(2, 4)], {"groups": find_groups(nn.Sequential(*small(), nn.Linear(3, 3)))}, ValueError,
         "no layer '3'"),
        (small(), [torch.zeros(2, 4)], {"forward_fn": lambda net, x: net(x).detach()}, ValueError, "not detach"),
        (small(), [torch.zeros(2, 4)],
         {"estimator": "hessian", "loss_fn": lambda net, x: net(x)}, TypeError, "scalar.*tensor"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_refused_with_a_sentence(model, data, options, error, words):
    with pytest.raises(error, match=words):
        plain_profile(model, data, **{**QUICK, **options})


def test_non_finite_values_are_named_with_module_and_batch():
    model = small()
    with torch.no_grad():
        model[2].weight[0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="1 of 24 values of 'weight' in the module '2'"):
        plain_profile(model, batches(), **QUICK)
    data = batches()
    data[1][0][3] = torch.inf
    with pytest.raises(NonFiniteError, match="outputs of the model are .* in batch 2.*module '0'.*batch itself"):
        plain_profile(small(), data, **QUICK)
    model = small()
    with torch.no_grad():
        model[2].weight[:] = 3e38
    with pytest.raises(NonFiniteError, match="in batch 1.*module '2'"):
        plain_profile(model, batches(), **QUICK)
    with pytest.raises(NonFiniteError, match="loss is NaN .* in batch 1, though every module"):
        plain_profile(small(), batches(), estimator="hessian", loss_fn=lambda net, b: net(b[0]).mean() / 0, **QUICK)


def test_training_steps_of_other_forms():
    class TensorStep(Module):
        def training_step(self, batch):
            return cross_entropy(self(batch[0]), batch[1])

    class NoLoss(Module):
        def training_step(self, batch, batch_idx):
            return None

    torch.manual_seed(0)
    model = Module()
    other = TensorStep()
    other.load_state_dict(model.state_dict())
    expected = plain_profile(model, batches(), estimator="hessian", bits=[2])
    assert torch.equal(plain_profile(other, batches(), estimator="hessian", bits=[2]).gradient, expected.gradient)
    with pytest.raises(TypeError, match="NoLoss.training_step returned None, which skips the batch.*loss_fn"):
        plain_profile(NoLoss(), batches(), estimator="hessian", bits=[2])


def flattened_logits(model, batch):
    return model(batch["input_ids"], batch["attention_mask"])["logits"].flatten(0, 1)


@pytest.mark.parametrize("estimator", ["fisher", "gauss_newton", "secant"])
def test_rows_for_positions_are_not_taken_for_samples(estimator):
    """Of which each is scored as if no other depended on what it is computed of; hidden tokens would count too."""
    given = {"forward_fn": flattened_logits, "likelihood": Categorical(class_dim=-1), "estimator": estimator}
    with pytest.raises(
        ValueError, match=r"\[15, 3\] have a row for each of the 15 positions of 3 samples.*\[3, 5, 3\]"
    ):
        plain_profile(tagger(), [padded("right")], bits=[2, 4], **given)


@pytest.mark.parametrize("seed", ["1", 1.5, None, True])
def test_a_seed_is_an_integer(seed):
    with pytest.raises(ValueError, match="seed must be an integer, got"):
        plain_profile(small(), [torch.zeros(2, 4)], bits=[2], seed=seed)
    with pytest.raises(ValueError, match="seed must be an integer, got"):
        allocate(make_taylor(), Budget(average_bits=4.0), seed=seed)


@pytest.mark.parametrize("likelihood", ["auto", Categorical(), Gaussian()])
def test_samples_by_themselves_are_not_taken_for_batches(likelihood):
    samples, model = torch.randn(6, 4), nn.Sequential(nn.Linear(4, 3))
    with pytest.raises(TypeError, match=r"batches must be a list .* got a float32 tensor \[6, 4\]: give \[tensor\]"):
        plain_profile(model, samples, likelihood=likelihood)
    with pytest.raises(ValueError, match=r"outputs \[3\] have one dimension.*as a DataLoader makes them"):
        plain_profile(model, list(samples), likelihood=likelihood)


def test_classes_have_a_dimension_of_their_own():
    model = nn.Sequential(nn.Linear(4, 1), nn.Flatten(0))
    with pytest.raises(ValueError, match=r"outputs \[6\] have one dimension.*return classes along a second"):
        plain_profile(model, [torch.randn(6, 4)], likelihood=Categorical())
