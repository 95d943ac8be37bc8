"""Rounded candidates in a folder: found again for the same weights, candidates and data, and for nothing else."""

import os

import pytest
import torch
from torch import nn

from lightning_mpq.groups.candidates import make_candidates
from lightning_mpq.groups.groups import find_groups
from lightning_mpq.network.calibration import Calibration
from lightning_mpq.pipeline.kept_rounding import KeptRounding
from lightning_mpq.rounding.independent import round_candidates


class Net(nn.Module):
    """An embedding tied to the head, and a layer between them."""

    def __init__(self):
        super().__init__()
        self.embedding, self.middle, self.head = nn.Embedding(9, 6), nn.Linear(6, 6), nn.Linear(6, 9)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        return self.head(torch.tanh(self.middle(self.embedding(tokens))))


def job():
    torch.manual_seed(0)
    return Net(), list(torch.randint(9, (4, 8, 5)))


class Watched(KeptRounding):
    """Notes the groups that were not found."""

    def __init__(self, folder, calibration):
        super().__init__(folder, calibration)
        self.new = []

    def keep(self, group, offered, rounded):
        self.new.append(group.name)
        return super().keep(group, offered, rounded)


@pytest.fixture
def kept(tmp_path):
    """Round through the folder, and return what was found and the groups that were rounded anew."""

    def use(model, batches, bits=(2, 4)):
        groups = find_groups(model)
        store = Watched(tmp_path, Calibration(model, batches))
        rounded = round_candidates(model, batches, groups, make_candidates(groups, bits=bits), kept=store)
        return rounded, store.new

    return use


def test_what_is_found_is_what_was_rounded(kept, tmp_path):
    model, batches = job()
    rounded, anew = kept(model, batches)
    assert anew
    found, anew = kept(model, batches)
    assert not anew
    assert found.candidates == rounded.candidates
    assert found.fingerprint == rounded.fingerprint
    assert found.errors == rounded.errors
    assert found.unseen == rounded.unseen
    scheme = found.candidates[0].scheme.weight
    assert found.rows["embedding", scheme] is found.rows["head", scheme]
    assert found.stored_bytes == rounded.stored_bytes
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < found.stored_bytes + 20_000


def test_other_weights_data_or_candidates_are_rounded_anew(kept):
    model, batches = job()
    kept(model, batches)
    assert kept(model, batches[:3])[1]
    assert kept(model, batches, bits=(2, 3))[1]
    with torch.no_grad():
        model.middle.weight[0, 0] += 1
    assert kept(model, batches)[1]


def test_a_job_that_was_stopped_goes_on_where_it_was(kept, monkeypatch):
    model, batches = job()
    whole = round_candidates(model, batches, candidates=make_candidates(find_groups(model), bits=(2, 4)))
    first, second = [group.name for group in find_groups(model)]
    keep = KeptRounding.keep

    def killed(self, group, offered, rounded):
        if group.name == second:
            raise KeyboardInterrupt
        return keep(self, group, offered, rounded)

    monkeypatch.setattr(KeptRounding, "keep", killed)
    with pytest.raises(KeyboardInterrupt):
        kept(model, batches)
    monkeypatch.setattr(KeptRounding, "keep", keep)
    found, anew = kept(model, batches)
    assert anew == [second] != [first]
    assert found.fingerprint == whole.fingerprint


def test_killed_before_each_layer_in_turn_a_job_rounds_every_layer_once(tmp_path, monkeypatch):
    torch.manual_seed(0)
    model, batches = nn.Sequential(*(nn.Linear(6, 6) for _ in range(5))), list(torch.randn(96, 6).split(32))
    groups = find_groups(model)
    offered = make_candidates(groups, bits=(2, 4))
    whole = round_candidates(model, batches, groups, offered)
    keep, rounded = KeptRounding.keep, []

    def killed_after_one(self, group, offered, found):
        rounded.append(group.name)
        keep(self, group, offered, found)
        raise KeyboardInterrupt

    monkeypatch.setattr(KeptRounding, "keep", killed_after_one)
    for _ in groups:
        with pytest.raises(KeyboardInterrupt):
            round_candidates(model, batches, groups, offered, kept=KeptRounding(tmp_path, Calibration(model, batches)))
    assert rounded == [group.name for group in groups]
    found = round_candidates(model, batches, groups, offered, kept=KeptRounding(tmp_path, Calibration(model, batches)))
    assert found.fingerprint == whole.fingerprint
    assert found.errors == whole.errors
    assert found.unseen == whole.unseen


def test_a_damaged_file_counts_as_absent(kept, tmp_path):
    model, batches = job()
    before = kept(model, batches)[0].fingerprint  # of codes that are mapped from the file
    file, _ = sorted(tmp_path.iterdir())
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.unlink()
    file.write_bytes(content)
    found, anew = kept(model, batches)
    assert anew
    assert found.fingerprint == before
    file.write_bytes(content[:50])
    assert kept(model, batches)[1]


def test_a_file_that_says_other_schemes_counts_as_absent(kept, tmp_path):
    model, batches = job()
    kept(model, batches)
    file, _ = sorted(tmp_path.iterdir())
    content = file.read_bytes()
    other = content.replace(b'bits\\": 4', b'bits\\": 8')
    assert other != content
    file.write_bytes(other)
    assert kept(model, batches)[1]


def test_what_is_no_file_is_not_waited_for(kept, tmp_path):
    model, batches = job()
    kept(model, batches)
    file, _ = sorted(tmp_path.iterdir())
    file.unlink()
    os.mkfifo(file)
    assert kept(model, batches)[1]
