"""A packed table: lookups unpack their own rows only, and give what the dequantized table holds."""

import pytest
import torch
from helpers.layers import packed_and_oracle
from helpers.schemes import grids_with
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_mpq.modules import pack_layer
from lightning_mpq.quantizers import quantize_rows
from lightning_mpq.schemes import WeightScheme


def test_a_lookup_touches_only_its_own_rows():
    packed, oracle, _ = packed_and_oracle("embedding-byte-rows", WeightScheme(2, "channel", "half"))
    assert packed.gathers_rows
    packed.packed_codes[4:] = 255  # rows of 16 columns at 2 bits are 4 bytes: everything but row 0
    assert torch.equal(packed(torch.tensor(0)), oracle(torch.tensor(0)))
    assert not torch.equal(packed(torch.tensor(1)), oracle(torch.tensor(1)))
    with pytest.raises(IndexError):
        packed(torch.tensor([9]))
    assert not packed_and_oracle("embedding", WeightScheme(3))[0].gathers_rows
    assert not packed_and_oracle("embedding-max-norm", WeightScheme(3))[0].gathers_rows


@given(
    rows=st.integers(1, 20),
    columns=st.integers(1, 24),
    bits=st.integers(2, 8),
    granularity=st.sampled_from(["tensor", "channel", 1, 5, 8]),
    data=st.data(),
    shape=st.sampled_from([(), (0,), (1,), (3, 2)]),
    index_type=st.sampled_from([torch.int32, torch.int64]),
)
@settings(max_examples=150)
def test_a_lookup_equals_the_table_for_any_size(rows, columns, bits, granularity, data, shape, index_type):
    torch.manual_seed(rows * columns)
    scheme = WeightScheme(bits, granularity, data.draw(st.sampled_from(grids_with(bits))))
    table = nn.Embedding(rows, columns)
    quantized = quantize_rows(table.weight.detach(), scheme)
    packed = pack_layer(table, quantized)
    assert packed.gathers_rows == (columns * bits % 8 == 0)
    indices = torch.randint(0, rows, shape, dtype=index_type)
    assert torch.equal(packed(indices), quantized.dequantize()[indices.long()])
