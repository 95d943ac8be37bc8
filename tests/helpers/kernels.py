"""Packed Linear layers for kernels, and the kernels that can be run here."""

from importlib.util import find_spec

import pytest
import torch
from torch import nn

from lightning_mpq.modules import pack_layer
from lightning_mpq.modules.kernels import Kernel, PreparedLinear
from lightning_mpq.network.layer_kinds import weight_rows
from lightning_mpq.quantizers import quantize_rows
from lightning_mpq.schemes import WeightScheme

needs_auto_round = pytest.mark.skipif(
    find_spec("auto_round_kernel") is None, reason="needs auto-round-lib: pip install 'lightning_mpq[cpu-kernels]'"
)
needs_humming = pytest.mark.skipif(
    find_spec("humming") is None or not torch.cuda.is_available(),
    reason="needs a GPU and humming-kernels: pip install 'lightning_mpq[cuda-kernels]'",
)
TOLERANCE = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}
"""Difference from the plain path, relative to the greatest output, by type of the layer."""


def packed_linear(rows, columns, scheme=None, dtype=torch.float32, bias=True):
    """Return a Sequential of one packed Linear layer."""
    torch.manual_seed(rows * columns)
    layer = nn.Linear(columns, rows, bias=bias)
    scheme = scheme or WeightScheme(4)
    return nn.Sequential(pack_layer(layer, quantize_rows(weight_rows(layer), scheme))).to(dtype)


def assert_close(found, expected):
    """Compare outputs in float64, relative to the greatest."""
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    error = (found.double() - expected.double()).abs().max() / expected.double().abs().max()
    assert error <= TOLERANCE[expected.dtype], error


class RecordingKernel(Kernel):
    """A kernel that runs anywhere: it multiplies in float64 and writes down what it did."""

    name = "recording"

    def __init__(self):
        self.prepared = 0
        self.calls = []
        self.refusal = None
        self.error = 0.0

    def why_not(self, matrix, dtype):
        return self.refusal

    def prepare(self, matrix, dtype):
        self.prepared += 1
        weight, columns = matrix.dequantize(torch.float64), matrix.columns

        def linear(inputs, bias):
            assert inputs.is_contiguous()
            assert inputs.shape[1] == columns
            self.calls.append(tuple(inputs.shape))
            result = inputs.double() @ weight.T * (1 + self.error)
            return (result if bias is None else result + bias.double()).to(inputs.dtype)

        return PreparedLinear(self.name, linear, weight.numel() * 8)
