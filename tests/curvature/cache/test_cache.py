"""Saving, merging, caching and continuing Taylor models."""

import json
import pickle
import warnings
from functools import partial

import pytest
import torch
from helpers.damage import flip_a_bit, zero_the_data
from helpers.networks import mlp, vectors
from helpers.profiles import nearest_candidates, plain_profile
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from lightning_mpq.curvature import TaylorModel, profile
from lightning_mpq.curvature.merge import merge
from lightning_mpq.errors import CorruptModelError
from lightning_mpq.groups.candidates import make_candidates
from lightning_mpq.groups.groups import find_groups
from lightning_mpq.network.likelihood import Categorical
from lightning_mpq.schemes import WeightScheme

OPTIONS = {"bits": [2, 4], "likelihood": Categorical()}


def task_loss(net, batch):
    return cross_entropy(net(batch[0]), batch[1])


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).double()


def data(count=4):
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(5 + i, 4, generator=generator).double(), torch.randint(0, 3, (5 + i,), generator=generator))
        for i in range(count)
    ]


def equal(one, other):
    assert torch.equal(one.gradient, other.gradient)
    assert torch.equal(one.curvature, other.curvature)
    assert torch.equal(one.gradient_error, other.gradient_error)
    assert torch.equal(one.curvature_error, other.curvature_error)
    same = ("groups", "candidates", "estimator", "loss", "samples", "float_bytes", "fingerprint", "batch_hashes")
    for name in same:
        assert getattr(one, name) == getattr(other, name), name


def test_a_model_saved_and_loaded_predicts_the_same(tmp_path):
    net = model()
    groups = find_groups(net)
    schemes = [WeightScheme(2, 4, "half", 0.8), WeightScheme(3, "tensor", "asymmetric", "mse", "float32")]
    taylor = plain_profile(
        net, data(), groups=groups, candidates=make_candidates(groups, schemes=schemes), loss="task", loss_fn=task_loss,
        likelihood=Categorical(),
    )  # fmt: skip
    loaded = TaylorModel.load(taylor.save(tmp_path / "new" / "model.safetensors"))
    equal(taylor, loaded)
    policy = taylor.policy([0, 3])
    assert loaded.predict(policy) == taylor.predict(policy)
    assert loaded.prediction_error(policy) == taylor.prediction_error(policy)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["model.safetensors"]


def test_a_model_made_by_hand_can_be_saved_too(tmp_path):
    groups = find_groups(model())
    candidates = nearest_candidates(groups, [2])
    taylor = TaylorModel(tuple(groups), candidates, torch.zeros(2), torch.eye(2), "hand", "task", 1)
    loaded = TaylorModel.load(taylor.save(tmp_path / "model"))
    assert loaded.sums is None
    assert loaded.curvature_error is None
    assert torch.equal(loaded.curvature, taylor.curvature)
    with pytest.raises(ValueError, match="holds no sums"):
        merge([taylor, loaded])


def test_damaged_and_foreign_files_are_named(tmp_path):
    path = plain_profile(model(), data(), **OPTIONS).save(tmp_path / "model")
    whole = path.read_bytes()
    for content in (whole[:100], whole[:-9], b"", b"\x00" * 64, pickle.dumps({"a": 1})):
        path.write_bytes(content)
        with pytest.raises(CorruptModelError, match="truncated or damaged"):
            TaylorModel.load(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(CorruptModelError, match="no Taylor model"):
        TaylorModel.load(path)
    save_file({"a": torch.zeros(1)}, path, metadata={"taylor": json.dumps({"format": "lightning_mpq.taylor"})})
    with pytest.raises(CorruptModelError, match="version None; expected 1 or 2"):
        TaylorModel.load(path)
    text = json.dumps({"format": "lightning_mpq.taylor", "version": 1, "groups": [{}], "candidates": []})
    save_file({"a": torch.zeros(1)}, path, metadata={"taylor": text})
    with pytest.raises(CorruptModelError, match="malformed"):
        TaylorModel.load(path)
    with pytest.raises(FileNotFoundError, match="no Taylor model at"):
        TaylorModel.load(tmp_path / "absent")


@pytest.mark.parametrize("curvature", ["fisher", "hessian", "gauss_newton", "secant"])
def test_two_halves_of_the_data_are_the_whole(curvature):
    net = model()
    options = {**OPTIONS, "estimator": curvature, "loss": "task", "loss_fn": task_loss}
    whole = plain_profile(net, data(), **options)
    merged = merge([plain_profile(net, data()[:1], **options), plain_profile(net, data()[1:], **options)])
    for name in ("gradient", "curvature", "gradient_error", "curvature_error"):
        assert_close(getattr(merged, name), getattr(whole, name), rtol=1e-10, atol=1e-15)
    assert (merged.samples, merged.fingerprint) == (whole.samples, whole.fingerprint)
    with pytest.raises(ValueError, match="differ in weights, candidates"):
        merge([merged, plain_profile(net, data(), **{**options, "seed": 1})])


class Counted(nn.Sequential):
    """Counts its forward passes."""

    calls = 0

    def forward(self, x):
        type(self).calls += 1
        return super().forward(x)


def counted():
    net = Counted(*model())
    Counted.calls = 0
    return net


def test_an_equal_call_is_read_and_any_other_is_measured(tmp_path):
    net, progress = counted(), []
    first = plain_profile(net, data(), cache_dir=tmp_path, **OPTIONS)
    calls = Counted.calls
    again = plain_profile(net, data(), cache_dir=tmp_path, progress=lambda *call: progress.append(call), **OPTIONS)
    assert Counted.calls == calls
    assert progress[0][0] == 1.0
    assert "found in" in progress[0][1]
    equal(first, again)
    for change in ({"seed": 1}, {"bits": [2, 3]}, {"estimator": "secant"}):
        other = plain_profile(net, data(), cache_dir=tmp_path, **{**OPTIONS, **change})
        assert Counted.calls > calls
        assert other.fingerprint != first.fingerprint
        calls = Counted.calls
    with torch.no_grad():
        net[0].weight[0, 0] += 1e-9
    assert plain_profile(net, data(), cache_dir=tmp_path, **OPTIONS).fingerprint != first.fingerprint
    net[1] = nn.Tanh()  # no weight changes, and yet it is another model
    assert plain_profile(net, data(), cache_dir=tmp_path, **OPTIONS).fingerprint != first.fingerprint


def test_the_key_sees_what_a_function_computes(tmp_path):
    net, found = model(), []
    for factor in (1.0, 2.0, 1.0):
        found.append(plain_profile(net, data(), forward_fn=lambda m, b, f=factor: m(b[0]) * f, **OPTIONS).fingerprint)
    found.append(plain_profile(net, data(), forward_fn=lambda m, b: m(b[0]) * factor, **OPTIONS).fingerprint)
    assert found[0] == found[2]
    assert len(set(found)) == 3


@pytest.mark.parametrize("damage", [lambda b: b[:50], lambda b: b"", lambda b: b[:-20]])
def test_a_corrupt_entry_is_measured_anew(tmp_path, damage):
    net = model()
    first = plain_profile(net, data(), cache_dir=tmp_path, **OPTIONS)
    (entry,) = tmp_path.glob("*.taylor.safetensors")
    entry.write_bytes(damage(entry.read_bytes()))
    equal(plain_profile(net, data(), cache_dir=tmp_path, **OPTIONS), first)
    equal(TaylorModel.load(entry), first)


def test_an_entry_renamed_over_another_is_not_used(tmp_path):
    net = model()
    first = plain_profile(net, data(), cache_dir=tmp_path, **OPTIONS)
    (entry,) = tmp_path.glob("*.taylor.safetensors")
    other = plain_profile(net, data(), cache_dir=tmp_path / "other", **{**OPTIONS, "seed": 1})
    other.save(entry)
    equal(plain_profile(net, data(), cache_dir=tmp_path, **OPTIONS), first)


def test_an_interrupted_measurement_continues_bit_identical(tmp_path, monkeypatch):
    import sys

    monkeypatch.setattr(sys.modules["lightning_mpq.curvature.cache.earlier_work"], "_STORE_SECONDS", -1.0)
    whole = plain_profile(model(), data(), **OPTIONS)
    net = counted()

    class Interrupted(Exception):
        pass

    def stop(fraction, message):
        if fraction >= 0.75:
            raise Interrupted

    with pytest.raises(Interrupted):
        plain_profile(net, data(), cache_dir=tmp_path, progress=stop, **OPTIONS)
    (partial,) = tmp_path.glob("*.taylor.safetensors")
    assert TaylorModel.load(partial).samples == 5 + 6
    Counted.calls = 0
    resumed = plain_profile(net, data(), cache_dir=tmp_path, **OPTIONS)
    assert Counted.calls <= 2 + 1  # the two batches left, and one sample to verify the layer calls
    assert torch.equal(resumed.curvature, whole.curvature)
    assert torch.equal(resumed.curvature_error, whole.curvature_error)
    assert resumed.samples == whole.samples


def test_more_data_extends_what_is_there_and_less_does_not_use_it(tmp_path):
    net = counted()
    plain_profile(net, data(3), cache_dir=tmp_path, **OPTIONS)
    Counted.calls = 0
    more = plain_profile(net, data(4), cache_dir=tmp_path, **OPTIONS)
    assert Counted.calls <= 1 + 1
    equal(more, plain_profile(net, data(4), **OPTIONS))
    less = plain_profile(net, data(2), cache_dir=tmp_path, **OPTIONS)
    equal(less, plain_profile(net, data(2), **OPTIONS))


def full_disk(*_, **__):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("step", ["fsync", "replace", "unlink"])
def test_a_disk_that_is_full_costs_the_cache_and_not_the_measurement(tmp_path, monkeypatch, step):
    import os
    import sys

    monkeypatch.setattr(sys.modules["lightning_mpq.curvature.cache.earlier_work"], "_STORE_SECONDS", -1.0)
    expected = plain_profile(model(), data(), **OPTIONS)
    monkeypatch.setattr(os, step, full_disk)
    with pytest.warns(UserWarning, match=f"The cache {tmp_path} cannot be used.*No space left"):
        found = plain_profile(model(), data(), cache_dir=tmp_path, **OPTIONS)
    equal(found, expected)


def test_a_file_in_the_place_of_the_cache_is_warned_of(tmp_path):
    (tmp_path / "cache").write_text("a note of mine")
    with pytest.warns(UserWarning, match="The cache .*cache cannot be used"):
        found = plain_profile(model(), data(), cache_dir=tmp_path / "cache", **OPTIONS)
    equal(found, plain_profile(model(), data(), **OPTIONS))
    assert (tmp_path / "cache").read_text() == "a note of mine"


def test_a_cache_that_cannot_be_looked_into_is_warned_of(tmp_path, monkeypatch):
    monkeypatch.setattr("pathlib.Path.glob", full_disk)
    with pytest.warns(UserWarning, match="Everything is measured anew"):
        found = plain_profile(model(), data(), cache_dir=tmp_path, **OPTIONS)
    equal(found, plain_profile(model(), data(), **OPTIONS))


@pytest.mark.parametrize("kind", ["taylor", "batches"])
@pytest.mark.parametrize("damage", [zero_the_data, *(partial(flip_a_bit, place=place) for place in (6, 1000, 2999))])
def test_damaged_numbers_never_decide_and_are_told(tmp_path, kind, damage):
    net, batches = mlp(6, 8, 3), vectors(16, 16)
    settings = {"bits": [2, 4], "likelihood": Categorical(), "cache_dir": tmp_path}
    whole = profile(net, batches, **settings)
    (entry,) = tmp_path.glob(f"*.{kind}.safetensors")
    for other in set(tmp_path.iterdir()) - {entry}:
        other.unlink()
    damage(entry)
    if kind == "taylor":
        with pytest.raises(CorruptModelError, match="damaged: its numbers"):
            TaylorModel.load(entry)
    with pytest.warns(UserWarning, match=f"{entry.name}.* damaged.*numbers"):
        again = profile(net, batches, **settings)
    assert torch.equal(again.curvature, whole.curvature)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what was damaged is whole again
        profile(net, batches, **settings)


@pytest.mark.parametrize("estimator", ["fisher", "gauss_newton", "secant"])
def test_numbers_do_not_tell_what_was_measured_before(tmp_path, estimator):
    net, batches = mlp(6, 8, 3), vectors(16, 16, 16, 16)
    settings = {"likelihood": Categorical(), "estimator": estimator}
    expected = profile(net, batches, bits=[2, 4, 8], **settings)
    histories = [(batches[:2], [2, 4, 8]), (batches[2:], [2, 4, 8]), (batches, [2, 8]), (batches, [2, 4, 8])]
    for number, (earlier, bits) in enumerate(histories):
        folder = tmp_path / str(number)
        profile(net, earlier, bits=bits, cache_dir=folder, **settings)
        if number == 3:  # the whole is lost, and its batches are left
            next(folder.glob("*.taylor.safetensors")).unlink()
        found = profile(net, batches, bits=[2, 4, 8], cache_dir=folder, **settings)
        assert found.fingerprint == expected.fingerprint
        if bits == [2, 8]:  # what is measured together is computed together, to the rounding of its type
            assert_close(found.curvature, expected.curvature, rtol=0, atol=1e-6 * float(expected.curvature.max()))
        else:
            assert torch.equal(found.curvature, expected.curvature)
            assert torch.equal(found.curvature_error, expected.curvature_error)
