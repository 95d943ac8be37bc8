"""Layers that are too wide for memory, and disks that are too small for candidates, are told of in a sentence."""

import errno
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
        MemoryError, match=r"layer '2' is multiplied with 32 inputs: .* takes 32.8 kB, and cpu has 20 kB left. Keep"
    ):
        mpq.round_candidates(model, batches)
    groups = mpq.find_groups(model)
    mpq.round_candidates(model, batches, groups, mpq.make_candidates(groups, rounding="nearest"))  # needs no moment
    groups = mpq.find_groups(model, keep_float=["2"])
    mpq.round_candidates(model, batches, groups, mpq.make_candidates(groups, [4]))


def test_in_sequence_a_moment_takes_room_too(monkeypatch):
    model, batches = problem()
    groups = mpq.find_groups(model)
    policy = mpq.BitPolicy({g.name: mpq.WeightScheme(3, rounding="second_order") for g in groups})
    monkeypatch.setattr(room, "available_bytes", lambda device: 20_000)
    with pytest.raises(MemoryError, match=r"layer '2' is multiplied with 32 inputs: .* and cpu has 20 kB left. Keep"):
        mpq.quantize(model, policy, batches)
    assert type(model[2]) is nn.Linear
    mpq.quantize(model, policy, batches, repair=mpq.RepairOptions(sequential=False))


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


def written_to(place, what):
    """Round through a cache that cannot be written; return what was said."""
    model, batches = problem()
    groups = mpq.find_groups(model)
    offered = mpq.make_candidates(groups, [2, 4])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        kept = kept_rounding.KeptRounding(place, Calibration.of(model, batches))
        rounded = mpq.round_candidates(model, batches, groups, offered, kept=kept)
    assert rounded.fingerprint == mpq.round_candidates(model, batches, groups, offered).fingerprint
    said = [str(each.message) for each in caught if f"The cache {place} cannot take the group" in str(each.message)]
    assert len(said) == 1
    assert what in said[0]


def test_a_cache_that_is_no_folder_or_fills_while_it_is_written_is_told_of_once(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    written_to(tmp_path / "file", "File exists")
    written_to(tmp_path / "file" / "below", "Not a directory")

    def full(file, path):
        file.write(b"part")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("lightning_mpq.tools.files.put_in_place", full)
    written_to(tmp_path / "full", "No space left on device")
    assert not list((tmp_path / "full").iterdir())
