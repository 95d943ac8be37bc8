"""BatchNorm on batch statistics: every estimator against a dense Jacobian through the statistics."""

import copy

import pytest
import torch
from helpers.dense_derivatives import categorical_information, flat_function, measured
from helpers.profiles import plain_profile
from helpers.weight_uses import Convolutions, make
from torch import nn
from torch.func import hessian, jacrev
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from lightning_mpq import profile
from lightning_mpq.network.likelihood import Categorical
from lightning_mpq.repair.batchnorm import reestimate_batchnorm


class OneSampleAtATime(Categorical):
    """Goes through all samples and labels; only one sample's score is not zero, so that cross terms vanish exactly."""

    def __init__(self) -> None:
        super().__init__()
        object.__setattr__(self, "calls", 0)

    def score(self, outputs, batch, generator):
        samples, classes = outputs.shape
        sample, label = divmod(self.calls % (samples * classes), classes)
        object.__setattr__(self, "calls", self.calls + 1)
        p = outputs.softmax(1)[sample]
        score = torch.zeros_like(outputs)
        score[sample] = -p
        score[sample, label] += 1
        return score * (p[label] * samples * classes).sqrt()


@pytest.fixture(scope="module")
def dense():
    model, batch = make(Convolutions)
    groups, candidates, deltas = measured(model, (2, 4))
    oracle = copy.deepcopy(model).train()
    oracle.norm.track_running_stats = False
    oracle.norm.running_mean = oracle.norm.running_var = None
    call, flat = flat_function(oracle, lambda net: net(batch[0]))
    return model, batch, {"groups": groups, "candidates": candidates}, deltas, oracle, call, flat


def dense_matrix(dense):
    _, (inputs, _), _, deltas, oracle, call, flat = dense
    along = jacrev(call)(flat) @ deltas
    information = categorical_information(oracle(inputs).detach())
    return torch.einsum("noi,nop,npj->ij", along, information, along) / len(inputs)


def test_fisher_scores_whole_batches(dense):
    model, (inputs, labels), options, *_ = dense
    before = copy.deepcopy(model.state_dict())
    taylor = plain_profile(
        model, [inputs], likelihood=OneSampleAtATime(), draws=18, statistics="reestimated", **options
    )
    exact = dense_matrix(dense)
    assert_close(taylor.curvature, exact, rtol=1e-9, atol=1e-12 * float(exact.max()))
    frozen = plain_profile(model, [inputs], estimator="gauss_newton", likelihood=Categorical(), **options)
    assert (frozen.curvature - exact).norm() > 0.1 * exact.norm()
    assert taylor.samples == 6
    for name, value in model.state_dict().items():
        assert torch.equal(before[name], value), name
    assert "running_mean" not in model.norm.__dict__


def test_drawn_scores_agree_within_their_standard_errors(dense):
    model, (inputs, _), options, *_ = dense

    estimates = [
        plain_profile(
            model, [inputs], likelihood=Categorical(), draws=40, statistics="reestimated", seed=s, **options
        ).curvature
        for s in range(10)
    ]
    exact = dense_matrix(dense)
    stacked = torch.stack(estimates)
    deviation = (stacked.mean(0) - exact).norm() / exact.norm()
    assert deviation < 0.25


def test_gauss_newton_and_hessian_see_through_the_statistics(dense):
    model, (inputs, labels), options, deltas, oracle, _, flat = dense
    exact = dense_matrix(dense)
    taylor = plain_profile(
        model, [inputs], estimator="gauss_newton", likelihood=Categorical(), statistics="reestimated", **options
    )
    assert_close(taylor.curvature, exact, rtol=1e-8, atol=1e-11 * float(exact.max()))
    loss, _ = flat_function(oracle, lambda net: cross_entropy(net(inputs), labels))
    dense_hessian = deltas.T @ hessian(loss)(flat) @ deltas
    taylor = plain_profile(
        model,
        [(inputs, labels)],
        estimator="hessian",
        loss_fn=lambda net, batch: cross_entropy(net(batch[0]), batch[1]),
        statistics="reestimated",
        **options,
    )
    assert_close(taylor.curvature, dense_hessian, rtol=1e-7, atol=1e-9 * float(dense_hessian.abs().max()))


def test_secant_is_the_step_of_a_model_that_was_really_reestimated(dense):
    model, (inputs, _), options, deltas, *_ = dense
    taylor = plain_profile(
        model, [inputs], estimator="secant", likelihood=Categorical(), statistics="reestimated", **options
    )

    def deployed(column):
        moved = copy.deepcopy(model)
        vector = torch.nn.utils.parameters_to_vector(moved.parameters()).detach() + column
        torch.nn.utils.vector_to_parameters(vector, moved.parameters())
        reestimate_batchnorm(moved, [inputs])
        return moved.eval()(inputs).detach()

    start = deployed(torch.zeros_like(deltas[:, 0]))
    changes = torch.stack([deployed(column) - start for column in deltas.T], 2)
    exact = torch.einsum("noi,nop,npj->ij", changes, categorical_information(start), changes) / len(inputs)
    # running variances are unbiased, those of a batch are not: 6 * 9 values a channel
    assert (taylor.curvature - exact).norm() < 0.05 * exact.norm()


def test_standard_errors_come_from_differences_between_batches():
    model, (inputs, _) = make(Convolutions, samples=12)
    options = {"likelihood": Categorical(), "bits": [2], "statistics": "reestimated"}
    together = plain_profile(model, list(inputs.split(4)), **options)
    alone = torch.stack([plain_profile(model, [part], **options).curvature for part in inputs.split(4)])
    assert_close(together.curvature, alone.mean(0))
    assert_close(together.curvature_error, alone.std(0) / 3**0.5)
    assert plain_profile(model, [inputs], **options).curvature_error is None


@pytest.mark.parametrize(("samples", "chunk_size", "draws"), [(64, None, 4), (64, 4, 16), (32, 2, 16), (24, 4, 6)])
def test_few_chunks_have_more_draws_so_that_there_are_scores_enough(samples, chunk_size, draws):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)).eval()
    given = {"bits": [2, 4], "likelihood": Categorical(), "chunk_size": chunk_size}
    batches = list(torch.randn(samples, 4).split(16))
    found, expected = profile(model, batches, **given), profile(model, batches, draws=draws, **given)
    assert_close(found.curvature, expected.curvature, rtol=0, atol=0)
    assert not torch.equal(found.curvature, profile(model, batches, draws=draws + 1, **given).curvature)
