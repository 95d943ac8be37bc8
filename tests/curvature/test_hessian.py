"""Exact gradient and Hessian against torch.func.hessian in float64."""

from __future__ import annotations

import pytest
import torch
from curvature_oracles import (
    MODELS,
    Convolutions,
    categorical_information,
    dense_hessian,
    dense_jacobian,
    make,
    measured,
)
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from lightning_mpq.curvature import Categorical, profile


def task_loss(net, batch):
    return cross_entropy(net(batch[0]), batch[1])


@pytest.mark.parametrize("kind", MODELS.values(), ids=MODELS)
def test_gradient_and_curvature_equal_the_dense_ones(kind):
    model, batch = make(kind)
    groups, candidates, deltas = measured(model)
    taylor = profile(model, [batch], groups=groups, candidates=candidates, curvature="hessian", loss_fn=task_loss)
    gradient, hessian = dense_hessian(model, lambda net: cross_entropy(net(batch[0]), batch[1]))
    exact = deltas.T @ hessian @ deltas
    assert_close(taylor.gradient, deltas.T @ gradient, rtol=1e-8, atol=1e-10 * float(gradient.norm()))
    assert_close(taylor.curvature, exact, rtol=1e-8, atol=1e-10 * float(exact.abs().max()))
    assert (taylor.estimator, taylor.loss) == ("hessian", "task")


def test_hessian_of_the_divergence_is_the_gauss_newton_matrix():
    model, (inputs, _) = make(Convolutions)
    groups, candidates, deltas = measured(model)
    taylor = profile(
        model,
        [inputs],
        groups=groups,
        candidates=candidates,
        curvature="hessian",
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
    options = {"groups": groups, "candidates": candidates, "curvature": "hessian", "loss_fn": task_loss}
    whole = profile(model, [(inputs, labels)], **options)
    parts = [(inputs[a:b], labels[a:b]) for a, b in ((0, 2), (2, 7), (7, 12))]
    divided = profile(model, parts, **options)
    assert_close(divided.gradient, whole.gradient, rtol=1e-9, atol=1e-14)
    assert_close(divided.curvature, whole.curvature, rtol=1e-9, atol=1e-14)
    assert whole.curvature_error is None  # one batch does not tell how much batches differ
    assert whole.gradient_error is None
    assert divided.samples == whole.samples == 12
    each = torch.stack([profile(model, [part], **options).gradient for part in parts])
    weights = torch.tensor([2.0, 5.0, 5.0], dtype=torch.float64)[:, None] / 12
    variance = (weights.square() * (each - divided.gradient).square()).sum(0) * 3 / 2
    assert_close(divided.gradient_error, variance.sqrt())


def test_task_gradient_beside_the_fisher_curvature():
    model, batch = make(Convolutions)
    groups, candidates, _ = measured(model, (2, 3))
    options = {"groups": groups, "candidates": candidates, "loss_fn": task_loss}
    exact = profile(model, [batch], curvature="hessian", **options)
    mixed = profile(model, [batch], curvature="fisher", loss="task", likelihood=Categorical(), **options)
    plain = profile(model, [batch], curvature="fisher", likelihood=Categorical(), **options)
    assert_close(mixed.gradient, exact.gradient, rtol=1e-9, atol=1e-14)
    assert_close(mixed.curvature, plain.curvature, rtol=0, atol=0)


def test_a_linear_loss_has_a_gradient_and_no_curvature():
    torch.manual_seed(0)
    model = nn.Linear(3, 1).double()
    inputs = torch.randn(4, 3, dtype=torch.float64)
    taylor = profile(model, [inputs], curvature="hessian", loss_fn=lambda net, x: net(x).mean(), bits=[2, 3])
    assert taylor.gradient.abs().min() > 0
    assert taylor.curvature.abs().max() == 0
