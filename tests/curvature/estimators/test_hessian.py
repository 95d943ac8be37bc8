"""Exact gradient and Hessian against torch.func.hessian in float64."""

import pytest
import torch
from helpers.dense_derivatives import categorical_information, dense_hessian, dense_jacobian, measured
from helpers.profiles import plain_profile
from helpers.weight_uses import MODELS, Convolutions, TiedLanguageModel, make
from torch import nn
from torch.nn.functional import affine_grid, cross_entropy, grid_sample
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.testing import assert_close

from lightning_mpq.network.likelihood import Categorical


def task_loss(net, batch):
    return cross_entropy(net(batch[0]), batch[1])


@pytest.mark.parametrize("kind", MODELS.values(), ids=MODELS)
def test_gradient_and_curvature_equal_the_dense_ones(kind):
    model, batch = make(kind)
    groups, candidates, deltas = measured(model)
    taylor = plain_profile(model, [batch], groups=groups, candidates=candidates, estimator="hessian", loss_fn=task_loss)
    gradient, hessian = dense_hessian(model, lambda net: cross_entropy(net(batch[0]), batch[1]))
    exact = deltas.T @ hessian @ deltas
    assert_close(taylor.gradient, deltas.T @ gradient, rtol=1e-8, atol=1e-10 * float(gradient.norm()))
    assert_close(taylor.curvature, exact, rtol=1e-8, atol=1e-10 * float(exact.abs().max()))
    assert (taylor.estimator, taylor.loss) == ("hessian", "task")


def test_hessian_of_the_divergence_is_the_gauss_newton_matrix():
    model, (inputs, _) = make(Convolutions)
    groups, candidates, deltas = measured(model)
    taylor = plain_profile(
        model,
        [inputs],
        groups=groups,
        candidates=candidates,
        estimator="hessian",
        loss="divergence",
        likelihood=Categorical(),
    )
    along = dense_jacobian(model, inputs) @ deltas
    information = categorical_information(model(inputs).detach())
    exact = torch.einsum("noi,nop,npj->ij", along, information, along) / len(inputs)
    assert_close(taylor.curvature, exact, rtol=1e-8, atol=1e-10 * float(exact.max()))
    assert taylor.gradient.abs().max() == 0


def test_batches_count_by_their_samples_and_differ_by_their_standard_error():
    model, (inputs, labels) = make(Convolutions, samples=12)
    groups, candidates, _ = measured(model, (2, 3))
    options = {"groups": groups, "candidates": candidates, "estimator": "hessian", "loss_fn": task_loss}
    whole = plain_profile(model, [(inputs, labels)], **options)
    parts = [(inputs[a:b], labels[a:b]) for a, b in ((0, 2), (2, 7), (7, 12))]
    divided = plain_profile(model, parts, **options)
    assert_close(divided.gradient, whole.gradient, rtol=1e-9, atol=1e-14)
    assert_close(divided.curvature, whole.curvature, rtol=1e-9, atol=1e-14)
    assert whole.curvature_error is None  # one batch does not tell how much batches differ
    assert whole.gradient_error is None
    assert divided.samples == whole.samples == 12
    each = torch.stack([plain_profile(model, [part], **options).gradient for part in parts])
    weights = torch.tensor([2.0, 5.0, 5.0], dtype=torch.float64)[:, None] / 12
    variance = (weights.square() * (each - divided.gradient).square()).sum(0) * 3 / 2
    assert_close(divided.gradient_error, variance.sqrt())


def test_task_gradient_beside_the_fisher_curvature():
    model, batch = make(Convolutions)
    groups, candidates, _ = measured(model, (2, 3))
    options = {"groups": groups, "candidates": candidates, "loss_fn": task_loss}
    exact = plain_profile(model, [batch], estimator="hessian", **options)
    mixed = plain_profile(model, [batch], estimator="fisher", loss="task", likelihood=Categorical(), **options)
    plain = plain_profile(model, [batch], estimator="fisher", likelihood=Categorical(), **options)
    assert_close(mixed.gradient, exact.gradient, rtol=1e-9, atol=1e-14)
    assert_close(mixed.curvature, plain.curvature, rtol=0, atol=0)


def test_a_linear_loss_has_a_gradient_and_no_curvature():
    torch.manual_seed(0)
    model = nn.Linear(3, 1).double()
    inputs = torch.randn(4, 3, dtype=torch.float64)
    taylor = plain_profile(model, [inputs], estimator="hessian", loss_fn=lambda net, x: net(x).mean(), bits=[2, 3])
    assert taylor.gradient.abs().min() > 0
    assert taylor.curvature.abs().max() == 0


class Sampled(nn.Module):
    """Looks at features through a grid that it computes itself (a spatial transformer)."""

    shape = (2, 6, 6)

    def __init__(self) -> None:
        super().__init__()
        self.features, self.where, self.last = nn.Conv2d(2, 3, 3), nn.Linear(72, 6), nn.Linear(3, 3)
        nn.init.normal_(self.where.weight, std=0.02)
        self.where.bias.data.copy_(torch.tensor([0.6, 0.1, 0.05, -0.1, 0.7, -0.05]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        grid = affine_grid(self.where(x.flatten(1)).unflatten(1, (2, 3)), [len(x), 3, 5, 5], align_corners=False)
        seen = grid_sample(self.features(x).tanh(), grid, mode=self.mode, align_corners=False)
        return self.last(seen.square().mean((2, 3)))


@pytest.mark.parametrize("mode", ["bilinear", "bicubic", "nearest"])
def test_second_derivatives_through_sampling_by_a_learned_grid_are_those_of_differences_of_gradients(mode):
    model, batch = make(Sampled)
    model.mode = mode
    groups, candidates, deltas = measured(model, (2, 4))
    taylor = plain_profile(model, [batch], groups=groups, candidates=candidates, estimator="hessian", loss_fn=task_loss)
    weights = parameters_to_vector(model.parameters()).detach()

    def gradient_at(step: torch.Tensor) -> torch.Tensor:
        vector_to_parameters(weights + step, model.parameters())
        return parameters_to_vector(torch.autograd.grad(task_loss(model, batch), list(model.parameters())))

    size = 1e-6
    rows = [(gradient_at(size * delta) - gradient_at(-size * delta)) @ deltas / (2 * size) for delta in deltas.T]
    assert_close(taylor.gradient, gradient_at(torch.zeros(())) @ deltas, rtol=1e-9, atol=1e-12)
    assert_close(taylor.curvature, torch.stack(rows), rtol=1e-5, atol=1e-7 * float(taylor.curvature.abs().max()))
    where = [candidate.group == "where" for candidate in candidates]
    assert (taylor.curvature[where][:, where].diagonal().abs().min() > 1e-9) == (mode != "nearest")


class Once(torch.autograd.Function):
    """The sine, with a derivative that says that it cannot be differentiated again."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0].cos()


class Hidden(Once):
    """The sine, with a derivative that autograd does not follow."""

    @staticmethod
    def backward(ctx, gradient):
        with torch.no_grad():
            return gradient * ctx.saved_tensors[0].cos()


class HalfHidden(Once):
    """The sine, with a derivative that follows the gradient that comes in but not the input."""

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0].detach().cos()


class Twice(Once):
    """The sine, with a derivative that can be differentiated as often as wanted."""

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0].cos()


def through(function):
    """Return a network of two layers with a function between them, and a batch."""

    class ThroughFunction(nn.Module):
        shape = (4,)

        def __init__(self):
            super().__init__()
            self.before, self.after = nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, x):
            return self.after(function(self.before(x)))

    model, (_, labels) = make(ThroughFunction)
    return model, (torch.randn(6, 4, dtype=torch.float64), labels)


def test_a_custom_function_that_can_be_differentiated_twice_is_measured_in_peace(recwarn):
    (model, batch), (plain, _) = through(Twice.apply), through(torch.sin)
    options = {"estimator": "hessian", "loss_fn": task_loss, "bits": [2, 4]}
    assert_close(plain_profile(model, [batch], **options).curvature, plain_profile(plain, [batch], **options).curvature)
    assert not [w for w in recwarn if "custom autograd function" in str(w.message)]


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (Once.apply, r"function\(s\) Once .* weights of before and after depends on the order"),
        (Hidden.apply, r"function\(s\) Hidden .* weights of before and after depends on the order"),
        (lambda x: torch.cdist(x, x, p=1.5)[:, :5], "weight of before: .*cdist"),
        (nn.functional.hardsigmoid, "weight of before: .*hardsigmoid"),
    ],
    ids=["once differentiable", "hidden", "cdist", "hardsigmoid"],
)
def test_a_second_derivative_that_is_missing_or_silently_zero_is_an_error_with_the_way_out(function, words):
    model, batch = through(function)
    with pytest.raises(NotImplementedError, match=f"(?s){words}.*estimator='fisher' or 'gauss_newton'"):
        plain_profile(model, [batch], estimator="hessian", loss_fn=task_loss, bits=[2, 4])
    plain_profile(model, [batch], estimator="secant", likelihood=Categorical(), bits=[2, 4])


def test_a_second_derivative_that_misses_a_part_is_a_warning():
    model, batch = through(lambda x: HalfHidden.apply(3 * x))
    with pytest.warns(UserWarning, match=r"HalfHidden stand.* differ from differences of gradients at before \(\d+%\)"):
        plain_profile(model, [batch], estimator="hessian", loss_fn=task_loss, bits=[2, 4])


def test_a_hidden_last_step_leaves_a_zero_that_differences_of_gradients_show():
    torch.manual_seed(0)
    model, inputs = nn.Sequential(nn.Linear(4, 3)).double(), torch.randn(6, 4, dtype=torch.float64)
    with pytest.raises(NotImplementedError, match="weights of 0 comes out as zero"):
        plain_profile(
            model, [inputs], estimator="hessian", loss_fn=lambda net, x: Hidden.apply(net(x)).mean(), bits=[2, 4]
        )


def test_a_row_is_measured_along_its_own_and_later_layers_only(monkeypatch):
    model, batch = make(Convolutions)
    asked = []
    original = torch.autograd.grad

    def counted(outputs, inputs, *args, **options):
        asked.append(len(inputs))
        return original(outputs, inputs, *args, **options)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    plain_profile(model, [batch], estimator="hessian", loss_fn=task_loss, bits=[2, 4])
    assert asked == [4] + [4, 4, 3, 3, 2, 2, 1, 1]


def test_rows_may_wait_for_each_other_or_not(monkeypatch):
    model, batch = make(TiedLanguageModel)
    options = {"estimator": "hessian", "loss_fn": task_loss, "bits": [2, 3]}
    together = plain_profile(model, [batch], **options)
    monkeypatch.setattr("lightning_mpq.curvature.estimators.hessian._WAITING_BYTES", 0)
    assert_close(plain_profile(model, [batch], **options).curvature, together.curvature, rtol=1e-12, atol=1e-14)
