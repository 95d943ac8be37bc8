"""What every estimator must do, for all that have a name: parts agree with the whole, and nothing stays behind."""

import pytest
import torch
from helpers.dense_derivatives import Enumerated
from helpers.profiles import plain_profile
from helpers.state import state_of
from torch import nn
from torch.nn.functional import cross_entropy

from lightning_mpq.curvature.estimators.registry import ESTIMATORS
from lightning_mpq.groups.groups import find_groups
from lightning_mpq.network.likelihood import Bernoulli, Gaussian

every_estimator = pytest.mark.parametrize("name", ESTIMATORS)
WIDTHS = (2, 3, 5)


def network():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    net[0].weight.requires_grad_(False)  # a frozen layer is measured and stays frozen
    return net


def batches():
    inputs = torch.randn(24, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    labels = torch.randint(0, 3, (24,), generator=torch.Generator().manual_seed(2))
    return list(zip(inputs.split(8), labels.split(8), strict=True))


def measure(name, net=None, data=None, bits=WIDTHS, **settings):
    settings = {"estimator": name, "likelihood": Enumerated(), "bits": bits} | settings
    if ESTIMATORS[name].default_loss == "task" or settings.get("loss") == "task":
        settings["loss_fn"] = lambda module, batch: cross_entropy(module(batch[0]), batch[1])
    if name == "fisher":
        settings["draws"] = 3  # Enumerated goes through all three labels
    return plain_profile(network() if net is None else net, batches() if data is None else data, **settings)


@every_estimator
def test_a_curvature_is_symmetric_finite_and_the_same_again(name):
    one, two = measure(name), measure(name)
    assert one.estimator == name
    assert one.loss == ESTIMATORS[name].default_loss
    assert torch.equal(one.curvature, two.curvature)
    assert torch.equal(one.curvature, one.curvature.T)
    assert torch.isfinite(one.curvature).all()
    assert one.samples == 24
    assert float(one.curvature.abs().max()) > 0


@every_estimator
def test_fewer_candidates_have_the_same_entries(name):
    whole, part = measure(name), measure(name, bits=(3,))
    index = [i for i, candidate in enumerate(whole.candidates) if candidate.scheme.bits == 3]
    torch.testing.assert_close(part.curvature, whole.curvature[index][:, index], rtol=1e-9, atol=1e-14)


@every_estimator
def test_batches_of_other_sizes_and_another_order_say_the_same(name):
    inputs, labels = (torch.cat(parts) for parts in zip(*batches(), strict=True))
    order = torch.randperm(24, generator=torch.Generator().manual_seed(3))
    others = list(zip(inputs[order].split([2, 17, 5]), labels[order].split([2, 17, 5]), strict=True))
    one, two = measure(name), measure(name, data=others)
    torch.testing.assert_close(one.curvature, two.curvature, rtol=1e-9, atol=1e-14)
    torch.testing.assert_close(one.gradient, two.gradient, rtol=1e-9, atol=1e-14)


@every_estimator
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(name, fails):
    net, data = network(), batches()
    net.train()
    state = state_of(net)
    asked = [parameter.requires_grad for parameter in net.parameters()]
    random = torch.get_rng_state()
    if fails:
        data[-1] = (data[-1][0] * torch.nan, data[-1][1])
        with pytest.raises(ValueError, match=r"(?i)nan|finite"):
            measure(name, net, data)
    else:
        measure(name, net, data)
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert [parameter.requires_grad for parameter in net.parameters()] == asked
    assert all(parameter.grad is None for parameter in net.parameters())
    assert all(not (m._forward_hooks or m._forward_pre_hooks or m._backward_hooks) for m in net.modules())
    assert all(module.training for module in net.modules())
    assert torch.equal(torch.get_rng_state(), random)


@every_estimator
def test_a_weight_that_is_not_disturbed_costs_nothing(name):
    net = network()
    net[2].weight.data = 1.5 * torch.randn(4, 6, dtype=torch.float64).sign()  # lies on the half grid of two bits
    taylor = measure(name, net, bits=(2,))
    still = [i for i, candidate in enumerate(taylor.candidates) if candidate.group == "2"]
    assert float(taylor.curvature[still].abs().max()) < 1e-12 * float(taylor.curvature.abs().max())
    assert {group.name for group in find_groups(net)} == {"0", "2", "4"}


@every_estimator
@pytest.mark.parametrize("likelihood", [Gaussian(2.0), Bernoulli()])
@pytest.mark.parametrize("functional", [False, True])
def test_outputs_of_one_number_a_sample_need_no_dimension_of_their_own(name, likelihood, functional):
    class Net(nn.Module):
        def __init__(self, flat):
            super().__init__()
            torch.manual_seed(0)
            self.flat, self.first, self.head = flat, nn.Linear(5, 6), nn.Linear(6, 1)

        def forward(self, inputs):
            hidden = self.first(inputs).tanh()
            head = nn.Linear.forward if functional else nn.Linear.__call__  # not called, forward mode measures it
            out = head(self.head, hidden)
            return out.flatten() if self.flat else out

    def measured(flat):
        net = Net(flat).double()
        data = [(inputs, inputs[:, 0] - 0.1) for inputs, _ in batches()]
        loss_fn = lambda module, batch: (module(batch[0]).flatten() - batch[1]).square().mean()  # noqa: E731
        given = {"loss_fn": loss_fn} if ESTIMATORS[name].default_loss == "task" else {}
        return plain_profile(net, data, estimator=name, likelihood=likelihood, bits=WIDTHS, **given)

    flat, column = measured(True), measured(False)
    torch.testing.assert_close(flat.curvature, column.curvature, rtol=1e-9, atol=1e-14)
    torch.testing.assert_close(flat.gradient, column.gradient, rtol=1e-9, atol=1e-14)
