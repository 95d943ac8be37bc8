"""What a job is said to take: by sizes that are known, and beside what its passes are counted to take."""

import re

import pytest
import torch
from helpers.state import assert_state, state_of
from helpers.trainer import SmallClassifier, SmallData, make_callback, make_trainer
from torch import nn

import lightning_mpq as mpq
from lightning_mpq.curvature.estimators import Fisher
from lightning_mpq.network.calibration import Calibration
from lightning_mpq.pipeline.dry_run import Passes
from lightning_mpq.pipeline.estimate import estimate_job
from lightning_mpq.pipeline.pipeline import Pipeline
from lightning_mpq.pipeline.settings import JobSettings
from lightning_mpq.pipeline.stage_bytes import Sizes
from lightning_mpq.tools.live_bytes import LiveBytes
from lightning_mpq.trainer import job


def problem(width=64):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 5))
    return model, list(torch.randn(64, 32).split(16))


SURE = mpq.CurvatureOptions(likelihood=mpq.Categorical())


def test_an_estimator_takes_as_long_by_its_name_as_by_itself(monkeypatch):
    passes = Passes(1, 1, 1, forward_seconds=60.0, backward_seconds=60.0)
    monkeypatch.setattr("lightning_mpq.pipeline.estimate.passes_over", lambda *args: passes)
    found = {}
    for estimator in ("fisher", Fisher(), "secant"):
        options = mpq.CurvatureOptions(estimator=estimator, likelihood=mpq.Categorical())
        stages = {stage.name: stage.minutes for stage in mpq.estimate(*problem(), curvature=options).stages}
        found[str(estimator)] = stages["profile"]
    by_name, by_itself, slow = found.values()
    assert by_itself == pytest.approx(by_name, rel=0.1)
    assert slow > 5 * by_name


def test_stages_sizes_and_the_sentence(tmp_path):
    model, batches = problem()
    before = state_of(model)
    found = mpq.estimate(model, batches, curvature=SURE)
    assert [stage.name for stage in found.stages] == ["round", "profile", "allocate", "quantize", "select"]
    assert found.model_bytes == sum(4 * parameter.numel() for parameter in model.parameters())
    assert all(stage.bytes > found.model_bytes for stage in found.stages)
    assert all(0 <= stage.minutes < 5 for stage in found.stages)
    assert (found.largest_layer, found.moment_bytes, found.disk_bytes) == ("2", 12 * 64 * 64, 0)
    assert re.fullmatch(
        r"about \d+ minutes?, [\d.]+ MB at most \(profile; the float model is 26.4 kB of it\)", str(found)
    )
    assert_state(model, before)
    kept = mpq.estimate(model, batches, curvature=SURE, cache_dir=tmp_path / "cache")
    offered = mpq.round_candidates(model, batches, candidates=mpq.make_candidates(mpq.find_groups(model)))
    assert found.stages[0].bytes - kept.stages[0].bytes == pytest.approx(offered.stored_bytes, rel=0.05)
    assert not (tmp_path / "cache").exists()  # nothing is written


@pytest.mark.parametrize("sequential", [True, False])
def test_no_more_is_written_than_was_said(tmp_path, sequential):
    model, batches = problem(128)
    settings = JobSettings(
        mpq.Budget(average_bits=4),
        candidates=mpq.CandidateOptions(bits=(2, 4, 8)),
        curvature=SURE,
        repair=mpq.RepairOptions(sequential=sequential),
        cache_dir=tmp_path,
    )
    said = estimate_job(Calibration(model, batches), settings).disk_bytes
    Pipeline(settings).run(model, batches, dict)
    written = sum(path.stat().st_size for path in tmp_path.glob("*.rounded.safetensors"))
    assert written <= said < (2 if sequential else 1.1) * written


def test_options_say_which_stages_there_are():
    model, batches = problem()
    plain = mpq.estimate(
        model,
        batches,
        curvature=SURE,
        candidates=mpq.CandidateOptions(rounding="nearest"),
        repair=mpq.RepairOptions(sequential=False),
        selection=mpq.SelectionOptions(policies=1, rounds=0),
    )
    assert [stage.name for stage in plain.stages] == ["round", "profile", "allocate", "quantize"]
    assert (plain.largest_layer, plain.moment_bytes) == (None, 0)


def test_passes_of_a_profile_take_what_they_are_counted_to_take():
    model, batches = problem(256)
    options = mpq.CandidateOptions(bits=(4,), grids=("symmetric",))
    groups = mpq.find_groups(model)
    rounded = mpq.round_candidates(model, batches, groups, options.candidates(groups))
    known = [*model.parameters(), *batches, *(t for rows in rounded.rows.values() for t in rows.tensors.values())]
    with LiveBytes(known) as live:
        mpq.profile(model, batches, groups=groups, rounded=rounded, likelihood=mpq.Categorical())
    found = mpq.estimate(model, batches, curvature=SURE, candidates=options)
    said = next(stage.bytes for stage in found.stages if stage.name == "profile") - found.model_bytes
    assert live.peak < said  # small models take less than the chunks that large ones are cut into


def test_no_batch_is_refused():
    with pytest.raises(ValueError, match="An estimate needs at least one calibration batch"):
        mpq.estimate(problem()[0], [], curvature=SURE)


def test_kernels_for_products_in_half_precision_are_counted():
    model, batches = problem()
    found = mpq.estimate(model, batches, curvature=SURE).stages
    batches = [batch.bfloat16() for batch in batches]
    half = mpq.estimate(model.bfloat16(), batches, curvature=SURE).stages
    assert all(two.bytes - one.bytes > 2**25 for one, two in zip(found, half, strict=True))


def test_memory_grows_with_the_model():
    sizes = []
    for width in (512, 1024):
        model, batches = problem(width)
        groups = mpq.find_groups(model)
        sizes.append(Sizes.of(model, groups, mpq.make_candidates(groups), 2**20))
    small, large = sizes
    assert large.weights > 3 * small.weights
    for kind in ("round_bytes", "profile_bytes"):
        assert getattr(large, kind)(0) > getattr(small, kind)(0)
    assert large.quantize_bytes(0, True) > 3 * small.quantize_bytes(0, True)


def test_a_large_model_is_spoken_of_before_the_work(tmp_path, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(job, "_LARGE", 1)
    monkeypatch.setattr(job, "rank_zero_info", lambda text, *rest, **more: said.append(text))
    torch.manual_seed(0)
    mixed = make_callback(compare=False)
    mixed.quantize_trained(make_trainer(tmp_path), SmallClassifier(), SmallData())
    assert any(re.match(r"MixedPrecisionQuantization: about \d+ minutes?, .* at most \(", text) for text in said)
