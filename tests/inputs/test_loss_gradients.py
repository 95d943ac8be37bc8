"""Gradients of inputs against those of torch.func, and what happens where there are none."""

import pytest
import torch
from helpers.networks import convnet, images, mlp, vectors
from torch import nn
from torch.utils.checkpoint import checkpoint

from lightning_mpq import Calibration, Categorical, Gaussian
from lightning_mpq.inputs.loss_gradients import LossGradients
from lightning_mpq.inputs.sites import inputs_changed
from lightning_mpq.network.isolation import isolated


def gradients(model: nn.Module, batch: torch.Tensor, likelihood=None, forward_fn=None):
    """Return what is found at all Linear and convolution layers of a model, twice."""
    found = LossGradients(Calibration(model, [batch], forward_fn=forward_fn, likelihood=likelihood))
    kinds = (nn.Linear, nn.Conv2d)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, kinds)}
    with inputs_changed(layers, found.tapped), isolated(model):
        return found.of(batch, 1), found.of(batch, 2)


@pytest.mark.parametrize("frozen", [False, True])
def test_squares_are_the_fisher_information_of_an_input_on_average(frozen):
    torch.manual_seed(0)
    model, x = mlp(6, 8, 3).double().requires_grad_(not frozen), torch.randn(400, 6).double()
    first, again = gradients(model, x, Gaussian())
    assert [layer for layer, _, _ in first] == ["0", "2"]
    for (_, inputs, gradient), (_, _, repeated) in zip(first, again, strict=True):
        assert inputs.shape == gradient.shape
        assert torch.equal(gradient, repeated)
    jacobian = torch.func.vmap(torch.func.jacrev(model))(x)  # [N, 3, 6]
    torch.testing.assert_close(
        first[0][2].square().mean(0), jacobian.square().sum(1).mean(0).detach(), rtol=0.2, atol=0
    )
    assert all(p.grad is None for p in model.parameters())


def test_an_overwritten_input_and_a_block_that_is_computed_twice_count_once():
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.three = (nn.Linear(6, 6) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = 2 * self.one(x)
            hidden = self.two(x)
            x.add_(hidden)
            return checkpoint(self.three, x, use_reentrant=False)

    torch.manual_seed(0)
    found, _ = gradients(InPlace(), *vectors(5), Gaussian())
    assert [layer for layer, _, _ in found] == ["one", "two", "three"]


@pytest.mark.parametrize(
    ("forward_fn", "likelihood"),
    [
        (lambda model, batch: {"pair": model(batch)}, Gaussian()),
        (lambda model, batch: model(batch).detach(), Gaussian()),
        (lambda model, batch: model(batch).argmax(1), None),
        (lambda model, batch: model(batch).softmax(1), None),
        (lambda model, batch: model(batch), Categorical(class_dim=5)),
    ],
    ids=["no tensor", "detached", "integers", "no known meaning", "another meaning"],
)
def test_without_gradients_there_are_none_and_the_model_still_runs(forward_fn, likelihood):
    calls = []

    def forward(model: nn.Module, batch: torch.Tensor):
        calls.append(len(batch))
        return forward_fn(model, batch)

    assert gradients(convnet(), *images(4), likelihood, forward) == ([], [])
    assert calls == [4, 4]
