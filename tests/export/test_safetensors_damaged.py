"""Hundreds of damaged and forged files: each is refused with a sentence, none crashes, none changes the model."""

import copy
import json
import random
import shutil

import pytest
import torch
from helpers.saved_net import INDICES, SavedNet, packed_net
from helpers.state import state_of

from lightning_mpq import load, save
from lightning_mpq.errors import CorruptModelError
from lightning_mpq.export.manifest import MANIFEST_NAME, _body_sha256
from lightning_mpq.export.tensor_file import header_sha256


@pytest.fixture
def saved(tmp_path):
    save(packed_net(), tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def model():
    return SavedNet()


def assert_refused(folder, model):
    """Load into one and the same model, which must stay as it is case after case."""
    modules = [id(module) for module in model.modules()]
    values = state_of(model)
    with pytest.raises(CorruptModelError) as caught:
        load(folder, model)
    assert str(caught.value).endswith((".", ")"))
    assert [id(module) for module in model.modules()] == modules
    for name, value in model.state_dict().items():
        assert torch.equal(value, values[name])


def weights_of(folder):
    [path] = folder.glob("weights-*.safetensors")
    return path


def damaged(content, generator):
    """Return the content cut, extended, or with a few bytes changed, inserted or exchanged."""
    kind, content = generator.randrange(5), bytearray(content)
    place = generator.randrange(len(content))
    if kind == 0:
        return content[:place]
    if kind == 1:
        return content + generator.randbytes(generator.randint(1, 40))
    if kind == 2:
        for _ in range(generator.randint(1, 4)):
            content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        return content
    if kind == 3:
        return content[:place] + generator.randbytes(generator.randint(1, 9)) + content[place:]
    return content[:place] + content[place:][::-1]


@pytest.mark.parametrize("which", ["weights", "header", "manifest"])
def test_damaged_bytes(saved, model, which):
    path = saved / MANIFEST_NAME if which == "manifest" else weights_of(saved)
    original = path.read_bytes()
    head = 8 + int.from_bytes(original[:8], "little") if which == "header" else len(original)
    generator = random.Random(which)
    count = 0
    while count < 100:
        content = bytes(damaged(original[:head], generator)) + original[head:]
        if content == original or (which == "manifest" and same_json(content, original)):
            continue
        path.write_bytes(content)
        assert_refused(saved, model)
        count += 1
    path.write_bytes(original)
    assert torch.equal(load(saved, SavedNet()).eval()(INDICES), packed_net()(INDICES))


def same_json(content, original):
    try:
        return json.loads(content) == json.loads(original)
    except (ValueError, RecursionError):
        return False


def test_truncation_at_every_kilobyte_and_around_the_header(saved, model):
    path = weights_of(saved)
    original = path.read_bytes()
    head = 8 + int.from_bytes(original[:8], "little")
    for length in [0, 1, 7, 8, 9, head - 1, head, head + 1, *range(0, len(original), 512), len(original) - 1]:
        path.write_bytes(original[:length])
        assert_refused(saved, model)


WILD = [None, True, -1, 10**30, 1.5, "", "x", "../x", [], [1], {}, {"a": 1}, [[[]]], {"": {"": None}}]


def paths_in(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in items:
        yield from paths_in(child, (*path, key))


def test_forged_manifests(saved, model):
    """Every value of the manifest replaced by wild ones, with a valid hash over the whole.

    Of values under the same key of several layers or tensors, the first gets all of them, and others a few.
    """
    path = saved / MANIFEST_NAME
    body = json.loads(path.read_text())
    body.pop("sha256")
    harmless = {("model_class",)}
    places = [place for place in paths_in(body) if place and place not in harmless]
    generator, kinds = random.Random(2), set()
    for place in places:
        kind = len(place), place[-1]
        wilds = generator.sample(WILD, 3) if kind in kinds else WILD
        kinds.add(kind)
        for wild in wilds:
            forged = copy.deepcopy(body)
            parent = forged
            for key in place[:-1]:
                parent = parent[key]
            if parent[place[-1]] == wild:
                continue
            parent[place[-1]] = wild
            if place[-1] == "granularity" and wild == 10**30:
                continue  # one block a row, however long, is a scale per channel
            path.write_text(json.dumps({**forged, "sha256": _body_sha256(forged)}))
            assert_refused(saved, model)
    assert len(places) > 100


def test_forged_headers_with_matching_hashes(saved, model):
    """A header that a forger signed reaches the parser, which must refuse it or find other tensors."""
    path, manifest = weights_of(saved), saved / MANIFEST_NAME
    original = path.read_bytes()
    length = int.from_bytes(original[:8], "little")
    header, data = json.loads(original[8 : 8 + length]), original[8 + length :]
    body = json.loads(manifest.read_text())
    body.pop("sha256")
    generator = random.Random(1)
    names = [name for name in header if name != "__metadata__"]
    for _ in range(100):
        forged = copy.deepcopy(header)
        name = generator.choice(names)
        change = generator.choice(["dtype", "shape", "data_offsets", "gone", "renamed", "noise"])
        if change == "gone":
            del forged[name]
        elif change == "renamed":
            forged[name + "x"] = forged.pop(name)
        elif change != "noise":
            forged[name][change] = generator.choice([*WILD, [2**62, 2**62], [0, 2**63], [5, 1], "F64", "F4", "I7"])
        text = json.dumps(forged).encode()
        text = bytes(damaged(text, generator)) if change == "noise" else text
        path.write_bytes(len(text).to_bytes(8, "little") + text + data)
        if forged == header and change != "noise":
            continue
        signed = {**body, "weights_bytes": path.stat().st_size, "header_sha256": str(header_sha256(path))}
        manifest.write_text(json.dumps({**signed, "sha256": _body_sha256(signed)}))
        try:
            load(saved, SavedNet())  # noise in __metadata__ or spacing is harmless
        except CorruptModelError:
            assert_refused(saved, model)
        else:
            assert change == "noise"


def test_a_pickle_is_never_opened(saved, model, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    torch.save(Bomb(), tmp_path / "bomb.pt")
    for path in (weights_of(saved), saved / MANIFEST_NAME):
        shutil.copy(tmp_path / "bomb.pt", path)
        assert_refused(saved, model)
    assert not (tmp_path / "executed").exists()


def test_nested_json_does_not_exhaust_the_stack(saved, model):
    (saved / MANIFEST_NAME).write_text("[" * 100_000)
    assert_refused(saved, model)
    (saved / MANIFEST_NAME).write_text('{"format": "lightning_mpq.model", "version": 2, "policy": ' + "[" * 100_000)
    assert_refused(saved, model)
