"""What no score speaks for: refused where it is everything, named where it is some groups."""

import pytest
import torch
from helpers.networks import labelled, mlp, vectors
from torch import nn

from lightning_mpq.curvature import profile
from lightning_mpq.network.likelihood import Categorical

pytestmark = pytest.mark.filterwarnings("ignore:likelihood=")


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(20, 8), nn.Linear(8, 20)

    def forward(self, ids):
        return self.out(torch.relu(self.embed(ids))).transpose(1, 2)


def tokens(*, counted: int, ignored: int):
    torch.manual_seed(0)
    ids = [torch.randint(0, 20, (4, 6)) for _ in range(counted + ignored)]
    return [(x, x if number < counted else torch.full_like(x, -100)) for number, x in enumerate(ids)]


def test_labels_that_are_all_ignored_are_refused():
    with pytest.raises(ValueError, match="3 of 3 .*every label is ignored"):
        profile(Tokens(), tokens(counted=0, ignored=3))


def test_batches_without_a_label_that_counts_are_told():
    with pytest.warns(UserWarning, match="2 of 3 .*every label is ignored"):
        profile(Tokens(), tokens(counted=1, ignored=2))


@pytest.mark.parametrize("estimator", ["fisher", "gauss_newton", "secant"])
@pytest.mark.parametrize("scale", [0.0, 1e6])
def test_outputs_that_are_constant_or_saturated_are_refused(estimator, scale):
    net = mlp(6, 8, 3)

    def forward(model, batch):
        return scale * (model(batch[0]) * 1e-4 + torch.arange(3.0))

    with pytest.raises(ValueError, match="Every score is zero.*constant"):
        profile(net, labelled(8), forward_fn=forward, likelihood=Categorical(), estimator=estimator)


class Heads(nn.Module):
    """A second head whose outputs nobody takes."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.one, self.two = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 5)

    def forward(self, x):
        hidden = self.body(x).tanh()
        return self.one(hidden), self.two(hidden)


def test_a_head_that_no_output_is_taken_of_is_named():
    with pytest.warns(UserWarning, match="reacts to the weights of two .*keep_float"):
        profile(Heads(), vectors(16), forward_fn=lambda model, x: model(x)[0], likelihood=Categorical())


def test_weights_that_rounding_leaves_as_they_are_have_zero_scores_by_right(recwarn):
    net = mlp(6, 8, 3)
    with torch.no_grad():
        net[0].weight.zero_()
    profile(net, vectors(16), likelihood=Categorical())
    assert not [warning for warning in recwarn if "reacts" in str(warning.message)]
