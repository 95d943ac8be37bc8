"""Packing is bit-exact for every width and awkward size; the oracle is Python's own big integers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_mpq.quantizers.packing import pack_codes, packed_size, unpack_codes
from lightning_mpq.schemes import WeightScheme

WIDTHS = range(2, 9)


@st.composite
def streams(draw):
    bits = draw(st.integers(2, 8))
    values = draw(st.lists(st.integers(0, 2**bits - 1), max_size=70))
    return bits, values


def big_integer_bytes(values, bits):
    """The stream as one Python integer: code i stands at bit i * bits."""
    number = sum(value << (bits * i) for i, value in enumerate(values))
    return list(number.to_bytes(-(-len(values) // 8) * bits, "little"))


@given(streams())
@settings(max_examples=200)
def test_stream_is_the_little_endian_integer_of_its_codes(stream):
    bits, values = stream
    codes = torch.tensor(values, dtype=torch.uint8)
    packed = pack_codes(codes, bits)
    assert packed.tolist() == big_integer_bytes(values, bits)
    assert packed.numel() == packed_size(len(values), bits)
    assert unpack_codes(packed, bits, len(values)).tolist() == values


@pytest.mark.parametrize("bits", WIDTHS)
def test_every_code_survives_at_every_position(bits):
    codes = torch.arange(2**bits, dtype=torch.uint8)
    for start in range(8):
        rolled = codes.roll(start)
        assert torch.equal(unpack_codes(pack_codes(rolled, bits), bits, rolled.numel()), rolled)


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (7, 3, 3, 1), (16, 9)])
def test_any_shape_packs_in_row_major_order_at_the_size_the_scheme_counts(bits, shape):
    codes = torch.randint(0, 2**bits, shape, dtype=torch.uint8).transpose(0, 1)
    packed = pack_codes(codes, bits)
    assert torch.equal(unpack_codes(packed, bits, codes.numel()).view(codes.shape), codes)
    scale_bits = 16
    counted = WeightScheme(bits, "tensor").stored_bits(codes.shape[0], codes[0].numel())
    assert packed.numel() * 8 == counted - scale_bits


@pytest.mark.parametrize("bits", WIDTHS)
def test_leading_dimensions_are_streams_of_their_own(bits):
    codes = torch.randint(0, 2**bits, (3, 2, 13), dtype=torch.uint8)
    packed = torch.stack([torch.stack([pack_codes(row, bits) for row in rows]) for rows in codes])
    assert torch.equal(unpack_codes(packed, bits, 13), codes)


@pytest.mark.parametrize("bits", WIDTHS)
def test_compiled_and_exported_unpacking_equals_eager(bits):
    class Unpack(torch.nn.Module):
        def forward(self, packed):
            return unpack_codes(packed, bits, 21)

    codes = torch.randint(0, 2**bits, (21,), dtype=torch.uint8)
    packed = pack_codes(codes, bits)
    assert torch.equal(torch.export.export(Unpack(), (packed,), strict=True).module()(packed), codes)
    assert torch.equal(torch.compile(Unpack(), backend="eager", fullgraph=True)(packed), codes)


def test_bad_input_is_refused():
    with pytest.raises(TypeError, match="must be uint8, got torch.int64"):
        pack_codes(torch.tensor([1]), 3)
    with pytest.raises(ValueError, match="lie in 0 .. 7, got 8"):
        pack_codes(torch.tensor([8], dtype=torch.uint8), 3)
    with pytest.raises(ValueError, match="2 to 8 bits, got 1"):
        pack_codes(torch.tensor([0], dtype=torch.uint8), 1)
    with pytest.raises(ValueError, match="need a stream of 6 bytes, got 3"):
        unpack_codes(torch.zeros(3, dtype=torch.uint8), 3, 9)
    with pytest.raises(ValueError, match="need a stream of 3 bytes, got 4"):
        unpack_codes(torch.zeros(4, dtype=torch.uint8), 3, 8)
    with pytest.raises(TypeError, match="uint8, got torch.int8"):
        unpack_codes(torch.zeros(3, dtype=torch.int8), 3, 8)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("count", [16, 17, 24, 100])
def test_many_codes_are_packed_in_pieces(bits, count, monkeypatch):
    codes = torch.randint(0, 2**bits, (count,), dtype=torch.uint8)
    whole = pack_codes(codes, bits)
    monkeypatch.setattr("lightning_mpq.quantizers.packing._AT_ONCE", 8)
    assert torch.equal(pack_codes(codes, bits), whole)
