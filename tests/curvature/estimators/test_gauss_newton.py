"""Gauss-Newton and secant curvature against dense float64 references, and all estimators against each other."""

import copy

import pytest
import torch
from helpers.dense_derivatives import categorical_information, dense_jacobian, measured
from helpers.profiles import plain_profile
from helpers.weight_uses import MODELS, TiedLanguageModel, make
from torch import nn
from torch.testing import assert_close

from lightning_mpq.curvature.estimators import gauss_newton
from lightning_mpq.network.likelihood import Bernoulli, Categorical, Gaussian


def in_metric(changes, information):
    """Return mean over samples of u_i^T H u_j for changes [N, outputs, K]."""
    return torch.einsum("noi,nop,npj->ij", changes, information, changes) / len(changes)


WAYS = {"from the outputs": 0, "from the candidates": 10**9}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", MODELS.values(), ids=MODELS)
def test_gauss_newton_equals_the_dense_one(kind, way, monkeypatch):
    monkeypatch.setattr(gauss_newton, "_PASSES_PER_OUTPUT", WAYS[way])
    model, (inputs, labels) = make(kind)
    groups, candidates, deltas = measured(model)
    taylor = plain_profile(
        model,
        [(inputs, labels)],
        groups=groups,
        candidates=candidates,
        estimator="gauss_newton",
        likelihood=Categorical(),
    )
    information = categorical_information(model.eval()(inputs).detach())
    exact = in_metric(dense_jacobian(model, inputs) @ deltas, information)
    assert_close(taylor.curvature, exact, rtol=1e-8, atol=1e-11 * float(exact.max()))
    assert taylor.gradient.abs().max() == 0


class Counted(nn.Module):
    """Two layers, 3 outputs; counts forward passes. Its last step is one that torch.vmap does not take, if wanted."""

    def __init__(self, last_step=lambda x: x):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 3)
        self.last_step = last_step
        self.passes = 0

    def forward(self, x):
        self.passes += 1
        return self.last_step(self.second(self.first(x).tanh()))


def test_gauss_newton_takes_one_pass_for_all_widths_of_a_layer_or_one_for_all_layers():
    inputs, options = torch.randn(6, 4), {"estimator": "gauss_newton", "likelihood": Categorical()}
    net = Counted()
    plain_profile(net, [inputs, inputs + 1], bits=[2, 3, 4], **options)  # 4 * 3 outputs > 6 candidates
    assert net.passes == 2 * (1 + 2) + 1  # outputs, and each layer's widths together; one comparison with a single one
    net = Counted()
    plain_profile(net, [inputs, inputs + 1], bits=range(2, 9), **options)  # 4 * 3 outputs < 14 candidates
    assert net.passes == 2 * (1 + 1) + 1  # outputs, outputs with a graph; one comparison with weight gradients


def through_channels_last(x):
    """Return the input; torch.vmap has no rule for that memory format."""
    return x[..., None, None].expand(-1, -1, 2, 2).contiguous(memory_format=torch.channels_last).mean((2, 3))


def silently_wrong_when_batched(x):
    """Double the tangents where several are carried at once, which torch.vmap shows by its levels."""
    return 2 * x - x.detach() if torch._C._functorch.maybe_current_level() is not None else x


@pytest.mark.parametrize(
    "last_step",
    [through_channels_last, silently_wrong_when_batched],
    ids=["refused by vmap", "wrong under vmap"],
)
def test_candidates_run_one_at_a_time_where_they_cannot_run_together(last_step, monkeypatch):
    monkeypatch.setattr(gauss_newton, "_PASSES_PER_OUTPUT", 10**9)
    inputs = torch.randn(6, 4)
    options = {"estimator": "gauss_newton", "likelihood": Categorical(), "bits": [2, 3, 4]}
    plain, net = Counted(), Counted(last_step)
    expected = plain_profile(plain, [inputs], **options)
    found = plain_profile(net, [inputs], **options)
    assert_close(found.curvature, expected.curvature)
    assert net.passes >= 1 + 6 + 1 > plain.passes


@pytest.mark.parametrize("kind", MODELS.values(), ids=MODELS)
def test_secant_equals_its_definition(kind):
    model, (inputs, _) = make(kind)
    groups, candidates, deltas = measured(model)
    taylor = plain_profile(
        model, [inputs], groups=groups, candidates=candidates, estimator="secant", likelihood=Categorical()
    )
    outputs = model.eval()(inputs).detach()
    changes = []
    for column in deltas.T:
        moved = copy.deepcopy(model)
        vector = torch.nn.utils.parameters_to_vector(moved.parameters()).detach() + column
        torch.nn.utils.vector_to_parameters(vector, moved.parameters())
        changes.append(moved(inputs).detach() - outputs)
    exact = in_metric(torch.stack(changes, 2), categorical_information(outputs))
    assert_close(taylor.curvature, exact, rtol=1e-8, atol=1e-11 * float(exact.max()))


@pytest.mark.parametrize("likelihood", [Categorical(), Gaussian(2.0), Bernoulli()], ids=["cat", "gauss", "bernoulli"])
def test_the_estimators_agree(likelihood):
    model, batch = make(TiedLanguageModel)
    options = {"likelihood": likelihood, "bits": [3, 6], "loss": "divergence"}
    exact = plain_profile(model, [batch], estimator="gauss_newton", **options)
    hessian = plain_profile(model, [batch], estimator="hessian", **options)
    assert_close(hessian.curvature, exact.curvature, rtol=1e-8, atol=1e-12)
    drawn = plain_profile(model, [batch], estimator="fisher", draws=2000, **options)
    relative = (drawn.curvature - exact.curvature).norm() / exact.curvature.norm()
    assert relative < 0.1
    secant = plain_profile(model, [batch], estimator="secant", bits=[8], likelihood=likelihood)
    tangent = plain_profile(model, [batch], estimator="gauss_newton", bits=[8], likelihood=likelihood)
    assert (secant.curvature - tangent.curvature).norm() < 0.1 * tangent.curvature.norm()
    for taylor in (exact, drawn, secant):
        assert float(torch.linalg.eigvalsh(taylor.curvature)[0]) > -1e-12 * float(taylor.curvature.trace())


def test_standard_errors_are_those_of_a_mean_over_samples():
    model, (inputs, _) = make(TiedLanguageModel, samples=5)
    options = {"estimator": "gauss_newton", "likelihood": Categorical(), "bits": [2, 3]}
    together = plain_profile(model, [inputs], **options)
    alone = torch.stack([plain_profile(model, [sample], **options).curvature for sample in inputs.split(1)])
    assert_close(together.curvature, alone.mean(0))
    assert_close(together.curvature_error, alone.std(0) / 5**0.5)


@pytest.mark.parametrize("curvature", ["fisher", "hessian", "gauss_newton"])
def test_attention_and_recurrence_in_single_precision(curvature):
    model, (ids, _) = make(MODELS["Transformer"])
    options = {"estimator": curvature, "loss": "divergence", "likelihood": Categorical(), "bits": [2, 4]}
    double = plain_profile(model, [ids], **options)
    single = plain_profile(copy.deepcopy(model).float(), [ids], groups=double.groups, **options)
    assert_close(single.curvature, double.curvature, rtol=0.05, atol=1e-2 * float(double.curvature.max()))


def test_forward_mode_is_right_where_second_derivatives_cannot_be_trusted():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Tanh(),
                        nn.Linear(4, 3)).double()  # fmt: skip
    inputs = torch.randn(5, 3, dtype=torch.float64)
    options = {"likelihood": Categorical(), "bits": [2, 4]}
    taylor = plain_profile(net, [inputs], estimator="gauss_newton", **options)
    with pytest.raises(NotImplementedError, match="weight_norm is silently wrong"):
        plain_profile(net, [inputs], estimator="hessian", loss="divergence", **options)
    nn.utils.parametrize.remove_parametrizations(net[2], "weight")
    plain = plain_profile(net, [inputs], estimator="gauss_newton", groups=taylor.groups, **options)
    assert_close(taylor.curvature, plain.curvature, rtol=1e-9, atol=1e-14)


def test_an_operation_without_forward_mode_is_named_with_the_way_out():
    class NoTangent(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            return g

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            return NoTangent.apply(self.layer(x))

    model, inputs = Net(), torch.randn(4, 3)
    with pytest.raises(NotImplementedError, match="layer can only be measured by forward-mode.*'secant'"):
        plain_profile(model, [inputs], estimator="gauss_newton", likelihood=Categorical())
    for curvature in ("secant", "fisher"):
        plain_profile(model, [inputs], estimator=curvature, likelihood=Categorical())
