"""Rounding in sequence that was killed goes on at the layer where it was, and ends as if nothing had happened."""

import errno
import os
import warnings
from dataclasses import replace

import pytest
import torch
from helpers.routing import Experts, Loops, Routed, routed
from torch import nn

import lightning_mpq as mpq
from lightning_mpq.groups.candidates import offered_schemes
from lightning_mpq.network.calibration import Calibration
from lightning_mpq.pipeline import kept_files
from lightning_mpq.pipeline.kept_sequence import KeptSequence
from lightning_mpq.policy import BitPolicy
from lightning_mpq.rounding.sequential import round_sequentially
from lightning_mpq.schemes import InputScheme, LayerScheme
from lightning_mpq.tools import temporaries

SCHEMES = {bits: offered_schemes([bits], grids=["half"])[0] for bits in (2, 3, 4)}


class Watched(KeptSequence):
    """Notes the layers that were not found, and dies after some of them."""

    def __init__(self, folder, calibration, lives=10**6):
        super().__init__(folder, calibration)
        self.new, self.lives = [], lives

    def keep(self, layer, found):
        super().keep(layer, found)
        self.new.append(layer)
        if len(self.new) == self.lives:
            raise KeyboardInterrupt


def convolutional():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, padding=1, groups=2),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(96, 5),
        nn.ReLU(),
        nn.Linear(5, 3),
    ).eval()
    return model, list(torch.randn(4, 10, 2, 4, 4))


def routing(kind):
    return lambda: (routed(kind), list(torch.randn(3, 16, 12, generator=torch.Generator().manual_seed(3))))


def policy_of(model, bits=2, inputs="float", other=()):
    groups = mpq.find_groups(model)
    own = {g.name: LayerScheme(SCHEMES[4 if g.name in other else bits], inputs) for g in groups}
    return BitPolicy(own, {g.name: g.layers for g in groups})


def equal(one, other):
    assert list(one) == list(other)
    for rows, same in ((one[name], other[name]) for name in one):
        assert torch.equal(rows.codes, same.codes)
        assert torch.equal(rows.scale, same.scale)
        assert rows.scheme == same.scheme
    return True


@pytest.fixture
def sequence(tmp_path):
    """Round through the folder; return the codes and the layers that were rounded anew."""

    def use(model, batches, policy, lives=10**6, **options):
        kept = Watched(tmp_path, Calibration(model, batches), lives)
        try:
            return round_sequentially(model, batches, policy, kept=kept, **options), kept.new
        except KeyboardInterrupt:
            return None, kept.new

    return use


@pytest.mark.filterwarnings("ignore:Rounding earlier layers")
@pytest.mark.parametrize(
    ("make", "options"),
    [
        (convolutional, {}),
        (convolutional, {"reestimated": True}),
        (convolutional, {"damping": 0.01, "lockstep": False}),
        (routing(Routed), {}),
        (routing(Experts), {}),
        (routing(Loops), {}),
    ],
)
def test_killed_at_every_layer_it_rounds_each_once_and_ends_the_same(sequence, make, options):
    model, batches = make()
    policy = policy_of(model)
    whole = round_sequentially(model, batches, policy, **options)
    killed = []
    for _ in range(20):
        found, new = sequence(model, batches, policy, lives=1, **options)
        killed += new
        if found is not None:
            break
    assert not new
    assert len(killed) >= 3
    if make is convolutional:
        assert killed == ["0", "3", "7", "9"]
    assert equal(found, whole)


def test_quantized_inputs_are_part_of_what_is_kept(sequence):
    model, batches = convolutional()
    policies = [policy_of(model, 3, InputScheme(bits)) for bits in (4, 8)]
    whole = [round_sequentially(model, batches, policy) for policy in policies]
    assert not equal_codes(*whole)
    for policy, expected in zip(policies, whole, strict=True):
        assert len(sequence(model, batches, policy, lives=2)[1]) == 2
        found, new = sequence(model, batches, policy)
        assert new == ["7", "9"]
        assert equal(found, expected)


def equal_codes(one, other):
    return all(torch.equal(one[name].codes, other[name].codes) for name in one)


def test_anything_else_is_rounded_anew_and_policies_share_what_begins_alike(sequence):
    model, batches = convolutional()
    policy = policy_of(model)
    sequence(model, batches, policy)
    assert sequence(model, batches, policy)[1] == []
    assert sequence(model, batches, policy_of(model, other=["7"]))[1] == ["7", "9"]
    assert sequence(model, batches, policy_of(model, other=["0"]))[1] == ["0", "3", "7", "9"]
    assert len(sequence(model, batches[::-1], policy)[1]) == 4  # which half a batch is in, is told by its place
    assert len(sequence(model, batches[:3], policy)[1]) == 4
    assert len(sequence(model, batches, policy, damping=0.1)[1]) == 4
    assert len(sequence(model, batches, policy, reestimated=True)[1]) == 4
    with torch.no_grad():
        model[9].weight[0, 0] += 1
    found, new = sequence(model, batches, policy)
    assert len(new) == 4
    assert equal(found, round_sequentially(model, batches, policy))


def flipped(file):
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.unlink()
    file.write_bytes(content)


def cut(file):
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content[: len(content) // 2])


def emptied(file):
    file.unlink()
    file.touch()


def piped(file):
    file.unlink()
    os.mkfifo(file)


def another(file):
    other = next(each for each in file.parent.iterdir() if each != file)
    content = other.read_bytes()
    file.unlink()
    file.write_bytes(content)


@pytest.mark.parametrize("harm", [flipped, cut, emptied, piped, another])
def test_damaged_files_count_as_absent(sequence, tmp_path, harm):
    model, batches = convolutional()
    policy = policy_of(model)
    whole = sequence(model, batches, policy)[0]
    files = sorted(tmp_path.iterdir())
    assert len(files) == 4
    for file in files:
        harm(file)
        found, new = sequence(model, batches, policy)
        assert len(new) == 1  # later layers follow from the same codes, and are found again
        assert equal(found, whole)


def test_a_disk_that_fills_is_told_of_once_and_leaves_no_part_of_a_file(sequence, tmp_path, monkeypatch):
    model, batches = convolutional()
    policy = policy_of(model)
    whole, written = round_sequentially(model, batches, policy), []
    put = temporaries.put_in_place

    def full_after_one(file, path):
        written.append(path)
        if len(written) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        put(file, path)

    monkeypatch.setattr("lightning_mpq.tools.files.put_in_place", full_after_one)
    with pytest.warns(UserWarning, match=r"cannot take the layer '3' as it was rounded, .*No space left") as said:
        found, _ = sequence(model, batches, policy)
    assert len([each for each in said if "cache" in str(each.message)]) == 1
    assert len(written) == 2  # and no more is tried
    assert [file.suffix for file in tmp_path.iterdir()] == [".safetensors"]
    assert equal(found, whole)
    monkeypatch.setattr("lightning_mpq.tools.files.put_in_place", put)
    found, new = sequence(model, batches, policy)
    assert new == ["3", "7", "9"]
    assert equal(found, whole)


def test_a_disk_without_room_is_not_written_to(sequence, tmp_path, monkeypatch):
    model, batches = convolutional()
    policy = policy_of(model)
    monkeypatch.setattr(kept_files, "free_bytes", lambda folder: 10)
    with pytest.warns(
        UserWarning, match=r"has 10 bytes free, and the layer '0' as it was rounded takes \d+ bytes: this"
    ):
        found, _ = sequence(model, batches, policy)
    assert not list(tmp_path.iterdir())
    assert equal(found, round_sequentially(model, batches, policy))


@pytest.mark.filterwarnings("ignore:Rounding earlier layers")
def test_what_is_said_of_a_layer_is_said_again(sequence):
    model, batches = routing(Experts)()
    with pytest.warns(UserWarning, match="belong to which samples") as first:
        sequence(model, batches, policy_of(model))
    with warnings.catch_warnings(record=True) as again:
        warnings.simplefilter("always")
        assert sequence(model, batches, policy_of(model))[1] == []
    assert str(first[0].message) in [str(each.message) for each in again]


def test_quantize_goes_on_in_its_cache(tmp_path, monkeypatch):
    model, batches = convolutional()
    policy = policy_of(model)
    repair = mpq.RepairOptions(batchnorm=False)
    whole = mpq.quantize(convolutional()[0], policy, batches, repair=repair)
    keep, rounded = KeptSequence.keep, []

    def killed(self, layer, found):
        keep(self, layer, found)
        rounded.append(layer)
        if len(rounded) < 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(KeptSequence, "keep", killed)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            mpq.quantize(model, policy, batches, repair=repair, cache_dir=tmp_path)
    mpq.quantize(model, policy, batches, repair=repair, cache_dir=tmp_path)
    assert rounded == ["0", "3", "7", "9"]
    for (name, one), other in zip(whole.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_layers_of_other_types_are_kept_on_their_grids(sequence):
    model, batches = nn.Sequential(nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 4)), list(torch.randn(3, 20, 32))
    scheme = offered_schemes([3], granularities=[16], grids=["asymmetric"])[0]
    groups = mpq.find_groups(model)
    policy = BitPolicy({g.name: replace(scheme) for g in groups}, {g.name: g.layers for g in groups})
    whole = sequence(model, batches, policy)[0]
    found, new = sequence(model, batches, policy)
    assert not new
    assert equal(found, whole)
    assert all(torch.equal(found[n].zero_point, whole[n].zero_point) for n in found)
