"""A profile with more widths, more data or both takes over what is there and measures only what is new."""

import pytest
import torch
from helpers.profiles import nearest_candidates, plain_profile
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from lightning_mpq.curvature.cache import kept_measurements
from lightning_mpq.groups.groups import find_groups
from lightning_mpq.network.likelihood import Categorical

BATCHES = 3


def task_loss(net, batch):
    return cross_entropy(net(batch[0]), batch[1])


class Net(nn.Module):
    """Three layers, one of them called twice, and a norm; counts forward passes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.twice, self.last = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.norm = nn.BatchNorm1d(6)
        self.passes = 0

    def forward(self, x):
        self.passes += 1
        x = self.norm(self.first(x)).tanh()
        return self.last(self.twice(self.twice(x).tanh()).tanh())


def data(count=BATCHES):
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(5 + i, 4, generator=generator), torch.randint(0, 3, (5 + i,), generator=generator))
        for i in range(count)
    ]


def same(one, other):
    for name in ("gradient", "curvature", "gradient_error", "curvature_error"):
        expected = getattr(other, name)
        scale = float(expected.abs().max())
        assert_close(getattr(one, name), expected, rtol=1e-4, atol=1e-5 * scale)
    assert (one.samples, one.fingerprint, one.candidates) == (other.samples, other.fingerprint, other.candidates)
    policy = one.policy(range(0, len(one.candidates), len(one.candidates) // 3))
    assert one.predict(policy).standard_error == pytest.approx(other.predict(policy).standard_error, rel=1e-3)


SETTINGS = {
    "fisher": {"estimator": "fisher", "draws": 2},
    "fisher of batches": {"estimator": "fisher", "draws": 2, "statistics": "reestimated"},
    "fisher and gradient": {"estimator": "fisher", "loss": "task", "loss_fn": task_loss},
    "gauss_newton": {"estimator": "gauss_newton", "chunk_size": 4},
    "secant": {"estimator": "secant"},
    "hessian": {"estimator": "hessian", "loss_fn": task_loss},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_more_widths_give_what_a_profile_from_scratch_gives(name, tmp_path):
    options = {"likelihood": Categorical(), **SETTINGS[name]}
    plain_profile(Net(), data(2), bits=[2, 5], cache_dir=tmp_path, **options)
    extended = plain_profile(Net(), data(), bits=[2, 3, 5, 8], cache_dir=tmp_path, **options)
    same(extended, plain_profile(Net(), data(), bits=[2, 3, 5, 8], **options))
    fewer = plain_profile(Net(), data(), bits=[3, 5], cache_dir=tmp_path, **options)
    same(fewer, plain_profile(Net(), data(), bits=[3, 5], **options))


def test_only_new_candidates_are_run(tmp_path):
    options = {"estimator": "secant", "likelihood": Categorical(), "cache_dir": tmp_path}
    net = Net()
    plain_profile(net, data(), bits=[2, 3, 4, 5], **options)
    assert net.passes == BATCHES * (1 + 4 * 3)
    net.passes = 0
    plain_profile(net, data(), bits=[2, 3, 4, 5, 6], **options)
    assert net.passes == BATCHES * (1 + 3)
    net.passes = 0
    plain_profile(net, data(BATCHES + 1), bits=[2, 3, 4, 5, 6, 7], **options)
    assert net.passes == BATCHES * (1 + 3) + 1 + 6 * 3
    net.passes = 0
    plain_profile(net, data(BATCHES + 1), bits=[2, 7], **options)
    assert net.passes == 0
    with torch.no_grad():
        net.first.bias[0] += 1e-3
    plain_profile(net, data(), bits=[2, 7], **options)
    assert net.passes == BATCHES * (1 + 2 * 3)


def test_only_new_rows_of_the_hessian_are_differentiated(tmp_path, monkeypatch):
    calls = []
    original = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *args, **options: calls.append(1) or original(*args, **options))
    options = {"estimator": "hessian", "loss_fn": task_loss, "cache_dir": tmp_path}
    plain_profile(Net(), data(), bits=[2, 3, 4], **options)
    assert len(calls) == BATCHES * (1 + 3 * 3)
    calls.clear()
    plain_profile(Net(), data(), bits=[2, 3, 4, 8], **options)
    assert len(calls) == BATCHES * (1 + 3)


def test_some_groups_may_have_nothing_new(tmp_path):
    net = Net()
    groups = find_groups(net)
    both = {"likelihood": Categorical(), "groups": groups, "estimator": "gauss_newton"}
    few, more = nearest_candidates(groups, [2, 4]), nearest_candidates(groups, [2, 3, 4])
    more = tuple(c for c in more if c.group != "twice" or c.scheme.bits != 3)
    plain_profile(net, data(), candidates=few, cache_dir=tmp_path, **both)
    net.passes = 0  # what a model counts is a part of it
    found = plain_profile(net, data(), candidates=more, cache_dir=tmp_path, **both)
    net.passes = 0
    same(found, plain_profile(net, data(), candidates=more, **both))


def test_measurements_that_do_not_fit_or_cannot_be_read_are_made_again(tmp_path, monkeypatch):
    options = {"estimator": "secant", "likelihood": Categorical()}
    plain_profile(Net(), data(), bits=[2, 3], cache_dir=tmp_path / "one", **options)
    (kept,) = (tmp_path / "one").glob("*.batches.safetensors")
    kept.write_bytes(kept.read_bytes()[:-7])
    expected = plain_profile(Net(), data(), bits=[2, 3, 4], **options)
    same(plain_profile(Net(), data(), bits=[2, 3, 4], cache_dir=tmp_path / "one", **options), expected)
    size = 6 * 4 * 3  # bytes of the rows of one sample: 6 candidates, 3 outputs
    monkeypatch.setattr(kept_measurements, "MOST_BYTES", size * (5 + 6))
    net = Net()
    plain_profile(net, data(), bits=[2, 3], cache_dir=tmp_path / "two", **options)
    net.passes = 0
    same(plain_profile(net, data(), bits=[2, 3, 4], cache_dir=tmp_path / "two", **options), expected)
    assert net.passes == 2 * (1 + 3) + (1 + 9)


def test_an_extended_file_takes_the_place_of_the_one_it_contains(tmp_path):
    options = {"likelihood": Categorical(), "cache_dir": tmp_path}
    for bits in ([2], [2, 3], [2, 3, 4]):
        plain_profile(Net(), data(), bits=bits, **options)
        assert len(list(tmp_path.glob("*.batches.safetensors"))) == 1
    assert len(list(tmp_path.glob("*.taylor.safetensors"))) == 3


def test_an_interrupted_extension_continues(tmp_path, monkeypatch):
    import sys

    monkeypatch.setattr(sys.modules["lightning_mpq.curvature.cache.earlier_work"], "_STORE_SECONDS", -1.0)
    options = {"estimator": "secant", "likelihood": Categorical()}
    plain_profile(Net(), data(), bits=[2, 3], cache_dir=tmp_path, **options)

    class Interrupted(Exception):
        pass

    def stop(fraction, message):
        if fraction > 0.5:
            raise Interrupted

    with pytest.raises(Interrupted):
        plain_profile(Net(), data(), bits=[2, 3, 4], cache_dir=tmp_path, progress=stop, **options)
    net = Net()
    resumed = plain_profile(net, data(), bits=[2, 3, 4], cache_dir=tmp_path, **options)
    assert net.passes == (BATCHES - 1) * (1 + 3)
    same(resumed, plain_profile(Net(), data(), bits=[2, 3, 4], **options))
