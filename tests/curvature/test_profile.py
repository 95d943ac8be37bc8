"""What `profile` promises around the estimators: nothing left behind, the same result again, as much data as needed."""

import copy
import random

import lightning as L
import numpy as np
import pytest
import torch
from helpers.profile_cases import QUICK, Module, batches, small
from helpers.profiles import nearest_candidates, plain_profile
from torch.nn.functional import cross_entropy

from lightning_mpq.groups.groups import find_groups
from lightning_mpq.network.likelihood import Gaussian


def train(profiled: bool):
    """Train a network with dropout and momentum, profiling in the middle or not."""
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    model = Module()
    model.net[0].bias.requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    noise = []
    for step in range(6):
        if step == 3 and profiled:
            loader = torch.utils.data.DataLoader(
                torch.utils.data.TensorDataset(*batches(1, 24)[0]), batch_size=8, shuffle=True
            )
            for curvature in ("fisher", "hessian"):
                plain_profile(model, loader, estimator=curvature, loss="task", **QUICK)
        optimizer.zero_grad()
        inputs, labels = batches()[step % 3]
        outputs = model(inputs)
        model.accuracy.update(outputs, labels)
        cross_entropy(outputs, labels).backward()
        optimizer.step()
        noise += [random.random(), np.random.rand(), float(torch.rand(()))]
    return model, noise


def test_training_goes_on_bit_identical():
    (plain, plain_noise), (profiled, noise) = train(False), train(True)
    assert noise == plain_noise
    for (name, expected), value in zip(plain.state_dict().items(), profiled.state_dict().values(), strict=True):
        assert torch.equal(expected, value), name
    assert float(plain.accuracy.compute()) == float(profiled.accuracy.compute())
    assert [m.training for m in profiled.modules()] == [m.training for m in plain.modules()]
    assert [p.requires_grad for p in profiled.parameters()] == [p.requires_grad for p in plain.parameters()]
    assert profiled.log.__func__ is L.LightningModule.log
    assert not {"log", "log_dict", "weight"} & set(profiled.__dict__)


@pytest.mark.parametrize("curvature", ["fisher", "hessian"])
def test_an_error_in_the_middle_leaves_the_model_as_it_was(curvature):
    model = Module()
    model.net[0].bias.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    rng = torch.get_rng_state()
    hooks = [len(m._forward_hooks) for m in model.modules()]

    def failing():
        yield from batches(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        plain_profile(model, failing(), estimator=curvature, loss="task", **QUICK)
    assert torch.equal(rng, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(m.training for m in model.modules())
    assert [p.requires_grad for p in model.parameters()] == [True, False] + [True] * 4
    assert hooks == [len(m._forward_hooks) for m in model.modules()]
    assert all(p.grad is None for p in model.parameters())
    assert "weight" not in model.net[0].__dict__
    assert torch.backends.mha.get_fastpath_enabled()


def test_the_same_call_gives_the_same_bits_and_the_order_of_batches_does_not_matter():
    model, data = small(), batches()
    first = plain_profile(model, data, **QUICK)
    again = plain_profile(model, iter(data), **QUICK)
    assert torch.equal(first.curvature, again.curvature)
    assert first.fingerprint == again.fingerprint
    reversed_ = plain_profile(model, data[::-1], **QUICK)
    torch.testing.assert_close(reversed_.curvature, first.curvature, rtol=1e-12, atol=0)
    assert reversed_.fingerprint == first.fingerprint
    other = plain_profile(model, data, seed=1, **QUICK)
    assert not torch.equal(other.curvature, first.curvature)


def test_the_fingerprint_tells_apart_what_differs():
    model, data = small(), batches()
    groups = find_groups(model)
    seen = {plain_profile(model, data, **QUICK).fingerprint}
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed[0].bias[0] += 1e-3
    other_data = [(x + 1e-3, y) for x, y in data]
    for net, batch, options in [
        (changed, data, {}),
        (model, other_data, {}),
        (model, data[:2], {}),
        (model, data, {"bits": [2, 3]}),
        (model, data, {"seed": 1}),
        (model, data, {"draws": 2}),
        (model, data, {"likelihood": Gaussian()}),
        (model, data, {"estimator": "hessian", "loss": "divergence"}),
        (model, data, {"candidates": nearest_candidates(groups, [2, 4])[:3]}),
    ]:
        seen.add(plain_profile(net, batch, **{**QUICK, **options}).fingerprint)
    assert len(seen) == 10


def test_every_form_of_batch_and_forward():
    model, data = small(), batches(1)
    expected = plain_profile(model, data, **QUICK).curvature
    inputs = data[0][0]
    as_dict = [{"x": inputs, "name": ["a"] * 8}]
    for batch, forward in [
        ([inputs], None),
        ([[inputs]], None),
        (as_dict, lambda net, b: net(b["x"])),
    ]:
        got = plain_profile(model, batch, forward_fn=forward, **QUICK)
        assert got.samples == 8
        # other content, hence other draws: the same scale
        assert (got.curvature.diagonal() / expected.diagonal()).log().abs().max() < 3


def test_progress_rises_to_one():
    calls = []
    plain_profile(small(), batches(), progress=lambda fraction, message: calls.append((fraction, message)), **QUICK)
    assert [round(fraction, 3) for fraction, _ in calls] == [0.333, 0.667, 1.0]
    assert "24 samples" in calls[-1][1]


def test_tolerance_stops_once_predictions_are_sure_enough():
    model, data = small(), batches(60)
    rough, fine = (plain_profile(model, iter(data), tolerance=t, **QUICK) for t in (0.3, 0.15))
    assert 8 * 8 <= rough.samples < fine.samples < 60 * 8
    assert torch.equal(rough.curvature, plain_profile(model, data[: rough.samples // 8], **QUICK).curvature)
    with pytest.warns(UserWarning, match=r"ended at a relative error of 0\.\d+ .*480 samples in 60 batches"):
        plain_profile(model, data, tolerance=0.001, **QUICK)
    with pytest.warns(UserWarning, match="ended at a relative error of inf"):
        plain_profile(model, data[:7], tolerance=0.9, **QUICK)
    with pytest.raises(ValueError, match="tolerance must be a positive fraction"):
        plain_profile(model, data, tolerance=0.0, **QUICK)


def test_the_relative_error_is_that_of_the_mean_over_batches():
    model, data = small().double(), [(x.double(), y) for x, y in batches(10)]
    parts = [plain_profile(model, [batch], **QUICK) for batch in data]
    plans = [[0, 2], [1, 3]]
    values = torch.stack([torch.stack([p.curvature[x][:, x].sum() / 2 for x in plans]) for p in parts])
    expected = float((values.std(0) / 10**0.5 / values.mean(0)).max())
    with pytest.warns(UserWarning, match=f"error of {expected:.2g} of"):
        plain_profile(model, data, tolerance=expected * 0.999, **QUICK)


def test_tolerance_and_cache_agree_on_where_to_stop(tmp_path):
    model, data = small(), batches(60)
    first = plain_profile(model, data, tolerance=0.3, cache_dir=tmp_path, **QUICK)
    again = plain_profile(model, data, tolerance=0.3, cache_dir=tmp_path, **QUICK)
    assert first.samples == again.samples < 480
    assert torch.equal(first.curvature, again.curvature)
