"""Quantized inputs beside quantized weights: estimators against dense float64 derivatives, joint columns as sums."""

from dataclasses import replace

import pytest
import torch
from helpers.dense_derivatives import Enumerated, categorical_information, dense_jacobian, measured
from helpers.input_changes import INPUTS, dense_input_changes, joint_candidates, levels, rounded_jointly
from helpers.networks import class_loss, convnet, images, mlp, with_labels
from helpers.profiles import plain_profile
from helpers.weight_uses import (
    Attention,
    Convolutions,
    MixtureOfExperts,
    OneAndThreeDimensions,
    TiedLanguageModel,
    make,
)
from torch import nn
from torch.testing import assert_close

from lightning_mpq.curvature.estimators import gauss_newton
from lightning_mpq.curvature.estimators.joint import JointColumns
from lightning_mpq.inputs.sites import input_sites
from lightning_mpq.network.batchnorm import batch_statistics
from lightning_mpq.network.likelihood import Categorical
from lightning_mpq.quantizers import quantize_rows
from lightning_mpq.schemes import InputScheme

KINDS = [Convolutions, OneAndThreeDimensions, TiedLanguageModel, Attention, MixtureOfExperts]


def joint(kind, bits=(2, 3)):
    """Return a network, its batch, its joint candidates, and the exact changes of its outputs along each, [N, o, K]."""
    model, (inputs, labels) = make(kind)
    groups, alone, _ = measured(model, bits)
    candidates = joint_candidates(model, groups, alone)
    rounded = replace(rounded_jointly(model, [(inputs, labels)], groups, candidates), operands={})  # see test_sums
    repeated = measured(model, bits)[2][:, JointColumns.of(candidates).weight_of]
    changes = dense_jacobian(model, inputs) @ repeated
    changes = changes + dense_input_changes(model, inputs, groups, candidates, rounded)
    return model, (inputs, labels), {"groups": groups, "rounded": rounded}, changes


def in_metric(model, inputs, changes):
    information = categorical_information(model.eval()(inputs).detach())
    return torch.einsum("noi,nop,npj->ij", changes, information, changes) / len(inputs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:The calls of these layers")
def test_fisher_scores_inputs_exactly(kind):
    model, batch, known, changes = joint(kind)
    classes = model(batch[0]).shape[1]
    taylor = plain_profile(model, [batch], likelihood=Enumerated(), draws=classes, **known)
    exact = in_metric(model, batch[0], changes)
    assert_close(taylor.curvature, exact, rtol=1e-8, atol=1e-11 * float(exact.max()))
    assert float(exact.diagonal().min()) > 0


@pytest.mark.parametrize("way", [0, 10**9], ids=["from the outputs", "from the candidates"])
@pytest.mark.parametrize("kind", [Convolutions, TiedLanguageModel])
def test_gauss_newton_scores_inputs_exactly(kind, way, monkeypatch):
    monkeypatch.setattr(gauss_newton, "_PASSES_PER_OUTPUT", way)
    model, batch, known, changes = joint(kind)
    taylor = plain_profile(model, [batch], likelihood=Categorical(), estimator="gauss_newton", **known)
    exact = in_metric(model, batch[0], changes)
    assert_close(taylor.curvature, exact, rtol=1e-8, atol=1e-11 * float(exact.max()))


def test_secant_adds_the_steps_of_weights_and_inputs():
    model, (batch,) = mlp(6, 5, 3).double(), with_labels([torch.randn(7, 6, dtype=torch.float64)])
    groups, alone, _ = measured(model, (2, 4))
    candidates = joint_candidates(model, groups, alone)
    rounded = rounded_jointly(model, [batch], groups, candidates)
    base, steps = model(batch[0]), []
    for candidate in candidates:
        layer = model.get_submodule(candidate.group)
        before = layer.weight.detach().clone()
        layer.weight.data = quantize_rows(before, candidate.scheme.weight).dequantize(torch.float64)
        step = model(batch[0]) - base
        layer.weight.data = before
        if (scheme := candidate.scheme.quantized_input) is not None:
            hook = layer.register_forward_pre_hook(
                lambda m, args, s=scheme, n=candidate.group: levels(args[0], s, rounded, n)
            )
            step = step + model(batch[0]) - base
            hook.remove()
        steps.append(step.detach())
    exact = in_metric(model, batch[0], torch.stack(steps, -1))
    taylor = plain_profile(model, [batch], groups=groups, rounded=rounded, likelihood=Categorical(), estimator="secant")
    assert_close(taylor.curvature, exact, rtol=1e-6, atol=1e-9 * float(exact.max()))


def test_with_batch_statistics_one_score_of_the_batch_sees_inputs_too():
    torch.manual_seed(0)
    model = convnet().double().eval()
    (batch,) = with_labels([images(6)[0].double()])
    groups, alone, deltas = measured(model, (3,))
    candidates = joint_candidates(model, groups, alone)
    rounded = rounded_jointly(model, [batch], groups, candidates)
    gauss = plain_profile(
        model, [batch], groups=groups, rounded=rounded, likelihood=Categorical(), estimator="gauss_newton",
        statistics="reestimated",
    )  # fmt: skip
    fisher = plain_profile(
        model, [batch], groups=groups, rounded=rounded, likelihood=Categorical(), draws=4000, statistics="reestimated"
    )
    assert_close(fisher.curvature, gauss.curvature, rtol=0, atol=0.1 * float(gauss.curvature.max()))
    with batch_statistics(model):
        assert float((fisher.curvature.diagonal() / gauss.curvature.diagonal() - 1).abs().max()) < 0.15


def test_the_gradient_of_the_task_loss_is_along_inputs_too():
    model, (batch,) = mlp(6, 5, 3).double(), with_labels([torch.randn(7, 6, dtype=torch.float64)])
    groups, alone, _ = measured(model, (2,))
    candidates = joint_candidates(model, groups, alone)
    rounded = rounded_jointly(model, [batch], groups, candidates)
    taylor = plain_profile(
        model, [batch], groups=groups, rounded=rounded, likelihood=Categorical(), loss="task", loss_fn=class_loss
    )
    changes = dense_input_changes(model, batch[0], groups, candidates, rounded)
    changes = (
        changes + dense_jacobian(model, batch[0]) @ measured(model, (2,))[2][:, JointColumns.of(candidates).weight_of]
    )
    outputs = model(batch[0]).detach().requires_grad_()
    (slope,) = torch.autograd.grad(torch.nn.functional.cross_entropy(outputs, batch[1]), outputs)
    assert_close(taylor.gradient, torch.einsum("no,nok->k", slope, changes))


def test_a_joint_candidate_is_the_sum_of_its_columns():
    model, batch, known, _ = joint(Convolutions)
    rounded = known["rounded"]
    columns = JointColumns.of(rounded.candidates)
    sites = [name for name in input_sites(model) if name in {c.group for c in rounded.candidates}]
    assert len(columns.weights) == 2 * len(known["groups"])
    assert columns.inputs == tuple((name, scheme) for name in sites for scheme in INPUTS)
    row = torch.randn(3, len(columns.weights) + len(columns.inputs))
    summed = columns.summed(row)
    for index, candidate in enumerate(rounded.candidates):
        weight = next(
            i
            for i, c in enumerate(columns.weights)
            if (c.group, c.scheme.weight) == (candidate.group, candidate.scheme.weight)
        )
        expected = row[:, weight]
        if candidate.scheme.quantized_input is not None:
            place = columns.inputs.index((candidate.group, candidate.scheme.quantized_input))
            expected = expected + row[:, len(columns.weights) + place]
        assert torch.equal(summed[:, index], expected)


def test_another_profile_continues_with_inputs_that_are_new(tmp_path):
    model, (batch,) = mlp(6, 5, 3), with_labels([torch.randn(9, 6)])
    groups, alone, _ = measured(model, (2, 4))
    settings = {"groups": groups, "likelihood": Categorical(), "draws": 3, "cache_dir": tmp_path}
    few = rounded_jointly(model, [batch], groups, joint_candidates(model, groups, alone, INPUTS[:1]))
    many = rounded_jointly(model, [batch], groups, joint_candidates(model, groups, alone, INPUTS))
    plain_profile(model, [batch], rounded=few, **settings)
    continued = plain_profile(model, [batch], rounded=many, **settings)
    afresh = plain_profile(model, [batch], rounded=many, **{**settings, "cache_dir": None})
    assert_close(continued.curvature, afresh.curvature)


def test_tokens_need_no_range_and_the_hessian_refuses_by_name():
    model, (batch,) = mlp(6, 5, 3), with_labels([torch.randn(9, 6)])
    groups, alone, _ = measured(model, (4,))
    tokens = joint_candidates(model, groups, alone, [InputScheme(4, "token")])
    taylor = plain_profile(model, [batch], groups=groups, candidates=tokens, likelihood=Categorical())
    assert float(taylor.curvature.diagonal().min()) > 0
    with pytest.raises(
        ValueError, match="estimator='hessian' measures weights only.*Use one of 'fisher', 'gauss_newton'"
    ):
        plain_profile(model, [batch], groups=groups, candidates=tokens, estimator="hessian", loss_fn=class_loss)


def test_ranges_are_found_where_nobody_gave_them():
    model, (batch,) = mlp(6, 5, 3), with_labels([torch.randn(9, 6)])
    groups, alone, _ = measured(model, (2, 4))
    candidates = joint_candidates(model, groups, alone)
    taylor = plain_profile(model, [batch], groups=groups, candidates=candidates, likelihood=Categorical())
    assert taylor.candidates == candidates


class OtherLastBits(nn.Module):
    """A layer whose inputs have other last bits in a batch than alone, as convolutions of other sizes give them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(2000, 3)

    def forward(self, x):
        return self.layer(x * (1 + 2.0**-22) if len(x) > 1 else x)


@pytest.mark.filterwarnings("error:The calls of these layers")
def test_one_code_that_flips_is_no_other_use_of_the_inputs():
    model, (batch,) = OtherLastBits(), with_labels([torch.rand(6, 2000)])
    groups, alone, _ = measured(model, (4,))
    candidates = joint_candidates(model, groups, alone, [InputScheme(8)])
    rounded = rounded_jointly(model, [batch], groups, candidates)
    found = rounded.inputs["layer", InputScheme(8)]
    batch[0][0, :8] = (
        torch.arange(8) * 2 + 100.5
    ) * found.scale  # between two codes: alone the even one, else the next
    plain_profile(model, [batch], groups=groups, rounded=rounded, likelihood=Categorical())
