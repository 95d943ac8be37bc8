"""Bytes of ggml's blocks are read back by gguf as the very weights that were rounded."""

import numpy as np
import pytest
import torch

from lightning_mpq.quantizers import RowRounding, quantize_rows
from lightning_mpq.schemes import WeightScheme
from lightning_mpq.targets.ggml_blocks import BLOCKS, SHARED, as_blocks, bytes_of

gguf = pytest.importorskip("gguf", reason="needs the extra 'llama-cpp'")
BITS = {name: int(name.lstrip("i")[1]) for name in BLOCKS}


def scheme_of(name, rounding="nearest"):
    clip = "moment" if rounding == "second_order" else "mse"
    return WeightScheme(BITS[name], SHARED[name], name, clip, "float32", rounding)


def weights(scale=0.02):
    drawn = torch.randn(6, 512, generator=torch.Generator().manual_seed(0)) * scale
    drawn[1] += 3 * scale  # all of one sign
    drawn[2, :256] = 0
    drawn[3] = drawn[3].abs() * -1
    drawn[4, 5] = 40 * scale
    return drawn


def read(name, blocks):
    return torch.from_numpy(gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[name.upper()]))


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("scale", [0.02, 1e-4, 30.0])
def test_gguf_reads_what_was_rounded(name, scale):
    assert BLOCKS[name] == gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name.upper()]]
    rows = weights(scale)
    rounded = quantize_rows(rows, scheme_of(name))
    blocks = as_blocks(rounded)
    assert blocks.dtype == np.uint8
    assert blocks.size == bytes_of(name, *rows.shape)
    torch.testing.assert_close(read(name, blocks), rounded.dequantize(torch.float32), rtol=1e-5, atol=2e-6 * scale)


@pytest.mark.parametrize("name", BLOCKS)
def test_error_feedback_rounds_to_the_types_better_than_to_nearest(name):
    mix = torch.randn(512, 512, generator=torch.Generator().manual_seed(1)) / 512**0.5 + torch.eye(512)
    moment = (mix @ mix.T)[None]
    nearest, fed = RowRounding(moment).round(weights(), [scheme_of(name), scheme_of(name, "second_order")])
    assert fed.error < nearest.error
    torch.testing.assert_close(
        read(name, as_blocks(fed.quantized)), fed.quantized.dequantize(torch.float32), rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("name", ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0"])
def test_rounding_to_nearest_is_no_worse_than_that_of_gguf(name):
    rows = torch.cat([weights()[:1], weights()[4:]])  # our ranges have zero in them
    own = quantize_rows(rows, scheme_of(name)).dequantize(torch.float32)
    kind = gguf.GGMLQuantizationType[name.upper()]
    other = torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(rows.numpy(), kind), kind))
    assert (own - rows).square().sum() <= 1.001 * (other - rows).square().sum()


def test_columns_that_fill_no_block_are_refused():
    with pytest.raises(ValueError, match="q4_k stores 256 columns together, and there are 32"):
        as_blocks(quantize_rows(torch.randn(2, 32), scheme_of("q4_k")))
