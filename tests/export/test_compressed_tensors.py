"""What compressed-tensors decompresses is the packed weight to the last bit; what it cannot carry is refused."""

import json
import sys

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from lightning_mpq.export.compressed_tensors import export_compressed_tensors
from lightning_mpq.grids.registry import DEFAULT_GRIDS
from lightning_mpq.modules import pack_model, packed_layers
from lightning_mpq.policy import BitPolicy
from lightning_mpq.quantizers.packing import pack_codes
from lightning_mpq.schemes import WeightScheme


class Net(nn.Module):
    """A table, many linear layers of awkward sizes, one under two names, and float leftovers."""

    def __init__(self, count):
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.layers = nn.ModuleList(nn.Linear(48, 9) for _ in range(count))
        self.again = self.layers[0]
        self.norm = nn.LayerNorm(9)
        self.plain = nn.Linear(3, 3)


SCHEMES = [
    WeightScheme(bits, granularity, grid, scale_dtype=scale_dtype)
    for bits in range(2, 9)
    for granularity in ("tensor", "channel", 16, 64)
    for grid, scale_dtype in zip(DEFAULT_GRIDS, ("bfloat16", "float16", "float32"), strict=True)
    if not (grid == "asymmetric" and granularity == "tensor") and not (grid == "half" and bits == 8)
]


def test_the_library_decompresses_the_same_weights(tmp_path):
    quantization = pytest.importorskip("compressed_tensors.quantization", reason="needs the extra compressed-tensors")
    from compressed_tensors.compressors import ModelCompressor, decompress_module

    torch.manual_seed(0)
    packed = Net(len(SCHEMES))
    names = {f"layers.{number}": scheme for number, scheme in enumerate(SCHEMES)}
    pack_model(packed, BitPolicy({"table": WeightScheme(3, 3, "half"), **names}))
    folder = export_compressed_tensors(packed, tmp_path / "new" / "model")

    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    config = quantization.QuantizationConfig.model_validate(config)
    read = Net(len(SCHEMES))
    quantization.apply_quantization_config(read, config)
    ModelCompressor(quantization_config=config).compress_model(read)
    stored = load_file(folder / "model.safetensors")
    assert stored.keys() == read.state_dict().keys()
    read.load_state_dict(stored)
    for name, layer in packed_layers(packed).items():
        decompress_module(read.get_submodule(name))
        assert torch.equal(read.get_submodule(name).weight, layer.weight), (name, layer.scheme)
    for name in ("norm.bias", "plain.weight", "layers.0.bias"):
        assert torch.equal(read.get_parameter(name), packed.get_parameter(name))
    assert sorted(path.name for path in folder.parent.iterdir()) == ["model"]
    codes = stored["layers.0.weight_packed"]
    assert codes.numel() * 4 == 9 * 48 * 2 // 8  # 2 bits a weight


@pytest.mark.parametrize(
    ("bits", "values", "words"),
    [  # by hand: integers from -2**(bits - 1), moved to begin at zero, the first in the lowest bits of a word of 32
        (4, [1, 2, 3, 4, 5, 6, 7, 0], [0x8FEDCBA9]),
        (4, [-1, -2, -3, -4, -5, -6, -7, -8], [0x01234567]),
        (8, [-128, 127, 0, 1], [0x8180FF00]),
        (2, [-2, -1, 0, 1] * 4, [0xE4E4E4E4]),
        (3, [-4, -3, -2, -1, 0, 1, 2, 3, -4, -3, 2, 0], [0x88FAC688, 0x9]),  # the 11th code lies in two words
    ],
)
def test_words_of_codes(bits, values, words):
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers", reason="needs the extra")
    codes = torch.tensor(values)
    found = helpers.pack_to_int32(codes.to(torch.int8)[None], bits)[0]
    assert [word % 2**32 for word in found.tolist()] == words
    stream = pack_codes((codes + 2 ** (bits - 1)).to(torch.uint8), bits).tolist()
    assert sum(byte << 8 * place for place, byte in enumerate(stream)) == sum(w << 32 * i for i, w in enumerate(words))


@pytest.mark.parametrize(
    ("make", "scheme", "reason"),
    [
        (lambda: nn.Conv2d(3, 4, 3), WeightScheme(4), "this is a Conv2d"),
        (lambda: nn.Linear(8, 4), WeightScheme(8, grid="half"), "one bit more there, and it packs at most 8"),
        (lambda: nn.Linear(8, 4), WeightScheme(4, "tensor", "asymmetric"), "zero points for channels and blocks only"),
        (lambda: nn.Linear(20, 4), WeightScheme(4, 16), "16 does not divide 20"),
        (lambda: nn.Linear(32, 8), WeightScheme(4, 16, "asymmetric"), "in blocks for 8 rows or fewer"),
    ],
)
def test_refusals_name_layer_scheme_and_reason(make, scheme, reason, tmp_path):
    pytest.importorskip("compressed_tensors", reason="needs the extra compressed-tensors")
    model = nn.ModuleDict({"fine": nn.Linear(4, 4), "stem": make()})
    pack_model(model, BitPolicy({"fine": WeightScheme(4), "stem": scheme}))
    with pytest.raises(ValueError, match=rf"cannot carry the layer 'stem' \({scheme}\): .*{reason}"):
        export_compressed_tensors(model, tmp_path / "model")
    assert not list(tmp_path.iterdir())
    assert packed_layers(model).keys() == {"fine", "stem"}


def test_a_folder_with_files_and_a_float_model_are_refused(tmp_path):
    pytest.importorskip("compressed_tensors", reason="needs the extra compressed-tensors")
    model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(ValueError, match="no packed layer"):
        export_compressed_tensors(model, tmp_path / "model")
    pack_model(model, BitPolicy({"0": WeightScheme(4)}))
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is not empty"):
        export_compressed_tensors(model, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_missing_package_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "compressed_tensors", None)
    monkeypatch.delitem(sys.modules, "compressed_tensors.quantization", raising=False)
    with pytest.raises(ImportError, match=r"pip install \"lightning_mpq\[compressed-tensors\]\""):
        export_compressed_tensors(nn.Sequential(nn.Linear(4, 4)), tmp_path / "model")
