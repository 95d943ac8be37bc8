"""Tables that onnxruntime dequantizes row by row: the same numbers as PyTorch, from codes of the same bytes."""

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import lightning_mpq as mpq


class Net(nn.Module):
    """Looks tokens up, in one table or in the same one twice."""

    def __init__(self, columns, times=1):
        super().__init__()
        self.table, self.out, self.times = nn.Embedding(300, columns), nn.Linear(columns, 8), times

    def forward(self, tokens):
        hidden = self.table(tokens)
        if self.times == 2:
            hidden = hidden + self.table(tokens.flip(1))
        return self.out(torch.relu(hidden))


def exported(tmp_path, columns, scheme, times=1, **options):
    torch.manual_seed(0)
    model = Net(columns, times)
    mpq.quantize(model, mpq.BitPolicy({"table": scheme, "out": mpq.WeightScheme(bits=4)}))
    tokens = torch.randint(0, 300, (2, 5))
    found = mpq.export_onnx(model, tmp_path / "model.onnx", tokens, **options)
    content = onnx.load(tmp_path / "model.onnx")
    return found, [node.op_type for node in content.graph.node], content


FUSED = [
    (64, mpq.WeightScheme(4, granularity=32)),
    (64, mpq.WeightScheme(4, granularity=32, grid="asymmetric")),
    (64, mpq.WeightScheme(3, granularity=16, grid="half")),
    (64, mpq.WeightScheme(4, grid="asymmetric")),  # one block a row
    (48, mpq.WeightScheme(4)),  # three blocks a row with one scale
    (48, mpq.WeightScheme(3, grid="half")),
    (48, mpq.WeightScheme(8)),
    (48, mpq.WeightScheme(7, grid="asymmetric")),
    (64, mpq.WeightScheme(6, granularity=32)),
    (48, mpq.WeightScheme(4, granularity="tensor")),
    (48, mpq.WeightScheme(8, granularity="tensor", grid="asymmetric")),
]


@pytest.mark.parametrize(("columns", "scheme"), FUSED, ids=str)
def test_rows_are_dequantized_to_the_same_numbers(tmp_path, columns, scheme):
    found, operations, content = exported(tmp_path, columns, scheme, standard=False)
    assert found.lookups == operations.count("GatherBlockQuantized") == 1
    assert found.error < 1e-6
    assert operations.count("DequantizeLinear") == 1  # of the product
    levels = next(t for t in content.graph.initializer if t.name == "table.weight.levels")
    assert found.containers["table"] == onnx.TensorProto.DataType.Name(levels.data_type)


@pytest.mark.parametrize(("columns", "scheme"), [FUSED[0], FUSED[3], FUSED[5], FUSED[6]], ids=str)
def test_a_table_takes_the_bytes_that_it_takes_by_the_standard(tmp_path, columns, scheme):
    _, _, content = exported(tmp_path, columns, scheme, standard=False)
    plain, operations, before = exported(tmp_path, columns, scheme)
    assert plain.lookups == 0
    assert "GatherBlockQuantized" not in operations
    sizes = [
        sum(len(t.raw_data) for t in each.graph.initializer if t.name.startswith("table")) for each in (content, before)
    ]
    assert sizes[0] - sizes[1] in (0, 16, 32)  # shapes that scales are brought to


NOT_FUSED = [
    (24, mpq.WeightScheme(4)),  # blocks of 8
    (48, mpq.WeightScheme(4, grid="asymmetric")),  # zero points of 4 bits, one for three blocks
    (64, mpq.WeightScheme(2, granularity=32)),
    (48, mpq.WeightScheme(4, granularity=24)),
]


@pytest.mark.parametrize(("columns", "scheme"), NOT_FUSED, ids=str)
def test_what_cannot_be_so_stays_as_it_is(tmp_path, columns, scheme):
    found, operations, _ = exported(tmp_path, columns, scheme, standard=False)
    assert found.lookups == 0
    assert "Gather" in operations


def test_a_table_that_is_looked_up_twice_is_stored_once(tmp_path):
    found, operations, content = exported(tmp_path, 64, mpq.WeightScheme(8, granularity=32), times=2, standard=False)
    assert (found.lookups, operations.count("GatherBlockQuantized")) == (1, 2)
    assert len([t for t in content.graph.initializer if t.name.startswith("table") and len(t.dims) == 2]) == 2


def test_a_table_that_a_product_reads_too_is_not_taken_apart(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.head = nn.Embedding(96, 64), nn.Linear(64, 96, bias=False)
            self.head.weight = self.table.weight

        def forward(self, tokens):
            return self.head(torch.relu(self.table(tokens)))

    torch.manual_seed(0)
    model = Tied()
    schemes = {group.name: mpq.WeightScheme(4) for group in mpq.find_groups(model)}
    mpq.quantize(model, mpq.BitPolicy(schemes, {group.name: group.layers for group in mpq.find_groups(model)}))
    found = mpq.export_onnx(model, tmp_path / "tied.onnx", torch.randint(0, 96, (2, 5)), standard=False)
    assert found.lookups == 0
    assert found.error < 1e-6


def test_the_target_writes_and_verifies_such_tables(tmp_path):
    torch.manual_seed(0)
    model = Net(48)
    mpq.quantize(model, mpq.BitPolicy({"table": mpq.WeightScheme(8), "out": mpq.WeightScheme(4)}))
    path = tmp_path / "model.onnx"
    said = mpq.export_for("onnxruntime", model, path, torch.randint(0, 300, (2, 5)))
    assert "loaded 2 of 2 layers" in str(said)
    levels = next(t for t in onnx.load(path).graph.initializer if t.name.endswith("table.weight.levels"))
    assert onnx.numpy_helper.to_array(levels).dtype == np.uint8
    content = bytearray(path.read_bytes())
    content[content.index(levels.raw_data) + 7] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="table"):
        mpq.verify(path)
