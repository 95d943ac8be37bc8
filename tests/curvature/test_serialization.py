"""Whatever stands in the file of a Taylor model, it is read or refused in one way, and no cache trips over it."""

import json
import os
import struct

import pytest
import torch
from helpers.odd_json import DEEP, odd_texts, refusal
from helpers.special_files import make
from torch import nn

import lightning_mpq as mpq
from lightning_mpq.errors import CorruptModelError


def profiled(folder, bits=(2, 4)):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    return mpq.profile(net, [torch.randn(8, 4)], bits=bits, likelihood=mpq.Categorical(), cache_dir=folder)


def header_of(content):
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def with_header(header, tensors):
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    return struct.pack("<Q", len(raw)) + raw + tensors


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    return profiled(folder), folder


def test_odd_values_are_refused_in_one_way(written, tmp_path):
    path = written[0].save(tmp_path / "model")
    header, tensors = header_of(path.read_bytes())
    read = 0
    for text in odd_texts(header["__metadata__"]["taylor"]):
        path.write_bytes(with_header({**header, "__metadata__": {"taylor": text}}, tensors))
        said = refusal(CorruptModelError, mpq.TaylorModel.load, path)
        assert len(said) < 2_000
        read += not said
    assert read  # a name may be any text


@pytest.mark.parametrize("text", [DEEP, "9" * 5000, "{}", "", '{"a":' * 5000])
@pytest.mark.parametrize("kind", ["taylor", "batches"])
def test_a_cache_entry_that_is_none_counts_as_absent(written, text, kind):
    reference, folder = written
    [path] = folder.glob(f"*.{kind}.*")
    content = path.read_bytes()
    header, tensors = header_of(content)
    [name] = header["__metadata__"]
    path.write_bytes(with_header({**header, "__metadata__": {name: text}}, tensors))
    again = profiled(folder)
    assert torch.equal(again.curvature, reference.curvature)
    for other in folder.iterdir():
        other.unlink()
    profiled(folder)


@pytest.mark.skipif(os.name != "posix", reason="makes links and pipes")
@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "giant", "loop"])
def test_what_is_no_ordinary_file_is_no_model_and_no_cache_entry(tmp_path, kind):
    with pytest.raises((CorruptModelError, FileNotFoundError)):
        mpq.TaylorModel.load(make(kind, tmp_path / "model"))
    reference = profiled(tmp_path / "cache")
    [kept] = (tmp_path / "cache").glob("*.batches.*")
    kept.unlink()
    make(kind, kept)
    wider = profiled(tmp_path / "cache", (2, 4, 5))
    chosen = [i for i, candidate in enumerate(wider.candidates) if candidate.scheme.bits in (2, 4)]
    torch.testing.assert_close(wider.curvature[chosen][:, chosen], reference.curvature)
