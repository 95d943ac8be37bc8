"""Layers that are too wide for memory, and disks that are too small for candidates, are told of in a sentence."""

import warnings

import pytest
import torch
from torch import nn

import lightning_mpq as mpq
from lightning_mpq.network.calibration import Calibration
from lightning_mpq.pipeline import kept_files, kept_rounding
from lightning_mpq.rounding import room


def problem():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3)), list(torch.randn(512, 8).split(128))


def test_a_moment_that_does_not_fit_names_layer_and_sizes(monkeypatch):
    model, batches = problem()
    monkeypatch.setattr(room, "available_bytes", lambda device: 20_000)
    with pytest.raises(
        MemoryError, match=r"layer '2' is multiplied with 32 inputs: .* takes 36.9 kB, and cpu has 20 kB left. Keep"
    ):
        mpq.round_candidates(model, batches)
    groups = mpq.find_groups(model)
    mpq.round_candidates(model, batches, groups, mpq.make_candidates(groups, rounding="nearest"))  # needs no moment
    groups = mpq.find_groups(model, keep_float=["2"])
    mpq.round_candidates(model, batches, groups, mpq.make_candidates(groups, [4]))


def test_a_full_disk_keeps_candidates_in_memory_and_says_so_once(tmp_path, monkeypatch):
    model, batches = problem()
    groups = mpq.find_groups(model)
    offered = mpq.make_candidates(groups, [2, 4])
    whole = mpq.round_candidates(model, batches, groups, offered)
    monkeypatch.setattr(kept_files, "free_bytes", lambda folder: 50)
    kept = kept_rounding.KeptRounding(tmp_path, Calibration.of(model, batches))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rounded = mpq.round_candidates(model, batches, groups, offered, kept=kept)
    texts = [str(each.message) for each in caught if "free" in str(each.message)]
    assert len(texts) == 1
    assert "has 50 bytes free, and the group '0' as it was rounded takes" in texts[0]
    assert rounded.fingerprint == whole.fingerprint
    assert not list(tmp_path.iterdir())
