"""The standard error of a prediction against repeated draws of the data, and against the formula by hand."""

from dataclasses import replace

import pytest
import torch
from helpers.profiles import nearest_candidates, plain_profile
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from lightning_mpq.curvature import TaylorModel, shrink
from lightning_mpq.curvature.accumulation import Accumulator
from lightning_mpq.curvature.estimators.measurement import Measurement
from lightning_mpq.curvature.merge import merge
from lightning_mpq.groups.groups import find_groups
from lightning_mpq.network.likelihood import Categorical


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))


def draw(seed, size=8, batches=12):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(size * batches, 6, generator=generator)
    labels = torch.randint(0, 3, (size * batches,), generator=generator)
    return list(zip(inputs.split(size), labels.split(size), strict=True))


def task_loss(net, batch):
    return cross_entropy(net(batch[0]), batch[1])


SETTINGS = {
    "fisher": {"estimator": "fisher"},
    "gauss_newton": {"estimator": "gauss_newton"},
    "task": {"estimator": "hessian", "loss_fn": task_loss},
    "fisher and gradient": {"estimator": "fisher", "loss": "task", "loss_fn": task_loss},
}


@pytest.mark.filterwarnings("ignore:The network is plainly not near a minimum")
@pytest.mark.parametrize("name", SETTINGS)
def test_predictions_of_repeated_profiles_differ_by_their_standard_error(name):
    net = network()
    models = [plain_profile(net, draw(s), bits=[2, 4], likelihood=Categorical(), **SETTINGS[name]) for s in range(30)]
    for plan in ([0, 2, 4], [0, 3, 5]):
        policy = models[0].policy(plan)
        found = [model.predict(policy) for model in models]
        spread = torch.tensor([p.value for p in found], dtype=torch.float64).std()
        claimed = torch.tensor([p.standard_error for p in found], dtype=torch.float64).square().mean().sqrt()
        assert 0.7 < float(claimed / spread) < 1.4  # 30 draws know the spread to 13 %
        assert claimed.isfinite()


def test_layers_whose_errors_add_up_err_together_and_not_independently():
    net = nn.Sequential(*(nn.Linear(2, 2) for _ in range(10)))
    groups = find_groups(net)
    scores = torch.randn(1600, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sums = Accumulator(tuple(groups), nearest_candidates(groups, [2]), "fisher", "divergence", "", 0)
    for part in scores.split(100):
        sums.add(Measurement(len(part), rows=part.expand(-1, -1, 10)))
    model = sums.result()
    policy = model.policy(range(10))
    exact = float(((10 * scores).square() / 2).std()) / 1600**0.5
    assert model.predict(policy).standard_error == pytest.approx(exact, rel=0.4)  # 16 blocks know it to 18 %
    assert model.entrywise_error(policy) == pytest.approx(exact * 2**0.5 / 10, rel=1e-3)


def test_the_formula_is_that_of_batches_of_unequal_size_when_each_is_a_block():
    net = network()
    data = [(x[: 3 + i], y[: 3 + i]) for i, (x, y) in enumerate(draw(0)[:5])]
    options = {"estimator": "hessian", "loss_fn": task_loss, "bits": [2, 4]}
    model = plain_profile(net, data, **options)
    policy = model.policy([1, 2, 4])
    alone = torch.tensor([plain_profile(net, [batch], **options).predict(policy).value for batch in data]).double()
    weight = torch.tensor([3.0, 4.0, 5.0, 6.0, 7.0]).double() / 25
    mean = (weight * alone).sum()
    expected = ((weight * (alone - mean)).square().sum() * 5 / 4).sqrt()
    assert model.predict(policy).value == pytest.approx(float(mean), rel=1e-5)
    assert model.predict(policy).standard_error == pytest.approx(float(expected), rel=1e-3)
    single = plain_profile(net, data[:1], **options)
    assert single.predict(policy).standard_error is None


def test_it_is_saved_merged_and_resumed(tmp_path):
    net, data = network(), draw(0)
    options = {"bits": [2, 4], "likelihood": Categorical()}
    whole = plain_profile(net, data, **options)
    policy = whole.policy([0, 2, 5])
    merged = merge([plain_profile(net, data[:5], **options), plain_profile(net, data[5:], **options)])
    assert_close(merged.predict(policy).standard_error, whole.predict(policy).standard_error, rtol=1e-4, atol=0)
    assert TaylorModel.load(whole.save(tmp_path / "model")).predict(policy) == whole.predict(policy)
    plain_profile(net, data[:7], cache_dir=tmp_path, **options)
    resumed = plain_profile(net, data, cache_dir=tmp_path, **options)
    assert_close(resumed.predict(policy).standard_error, whole.predict(policy).standard_error, rtol=1e-4, atol=0)


def test_a_shrunk_model_errs_as_far_as_its_entries_still_count():
    model = plain_profile(network(), draw(0), bits=[2, 4], likelihood=Categorical())
    policy = model.policy([0, 2, 4])
    within = shrink(replace(model, curvature_error=100 * model.curvature_error))  # all that is between groups is noise
    assert within.predict(policy).between == 0
    alone = torch.tensor([[model.curvature[i, i] / 2] for i in (0, 2, 4)]).sum()
    assert within.predict(policy).value == pytest.approx(float(alone))
    assert 0 < within.predict(policy).standard_error < model.predict(policy).standard_error


def test_a_model_without_blocks_takes_entries_as_independent():
    model = plain_profile(network(), draw(0), bits=[2, 4], likelihood=Categorical())
    policy = model.policy([0, 2, 4])
    assert replace(model, sums=None).predict(policy).standard_error == model.entrywise_error(policy)
    bare = replace(model, sums=None, curvature_error=None)
    assert bare.predict(policy).standard_error is None
