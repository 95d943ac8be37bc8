"""Every kernel computes what the plain path does, for all widths, grids, granularities and sizes it takes."""

import warnings

import pytest
import torch
from helpers.kernels import assert_close, needs_auto_round, needs_humming, packed_linear
from helpers.profiles import nearest_scheme
from torch import nn

from lightning_mpq.grids.registry import DEFAULT_GRIDS
from lightning_mpq.modules import use_kernels
from lightning_mpq.modules.kernels import KERNELS, PackedMatrix
from lightning_mpq.quantizers import quantize_rows
from lightning_mpq.quantizers.packing import pack_codes
from lightning_mpq.schemes import WeightScheme

GRANULARITIES = ["tensor", "channel", 5, 32]


def check(net, kernel, batch=7):
    """Compare a kernel with the plain path, in float64 for float32 layers, so that neither is the truth."""
    inputs = torch.randn(batch, net[0].in_features).to(net[0].scale.device, net[0].weight_dtype)
    oracle = nn.Linear(net[0].in_features, net[0].out_features, bias=net[0].bias is not None).double()
    with torch.no_grad():
        oracle.weight.copy_(net[0].quantized_rows().dequantize(torch.float64))
        if net[0].bias is not None:
            oracle.bias.copy_(net[0].bias)
        expected = oracle(inputs.double().cpu()).to(inputs.dtype)
        choice = use_kernels(net, kernel)["0"]
        assert choice.kernel == kernel, choice
        assert net[0].kernel_bytes == choice.bytes > 0
        assert_close(net(inputs).cpu(), expected)


@needs_auto_round
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("grid", DEFAULT_GRIDS)
@pytest.mark.parametrize("bits", range(2, 9))
def test_auto_round_takes_every_scheme_and_size(bits, grid, dtype):
    for granularity in GRANULARITIES:
        for rows, columns in [(64, 128), (5, 13), (33, 31), (1, 64)]:
            for scale_dtype in ("bfloat16", "float32"):
                scheme = WeightScheme(bits, granularity, grid, scale_dtype=scale_dtype)
                check(packed_linear(rows, columns, scheme, dtype, bias=rows != 33), "auto-round")


@pytest.mark.parametrize("grid", DEFAULT_GRIDS)
@pytest.mark.parametrize("bits", range(2, 9))
def test_torch_int8_takes_one_scale_per_row(bits, grid):
    for granularity in ("tensor", "channel"):
        for rows, columns in [(64, 128), (5, 13), (33, 31), (1, 64)]:
            net = packed_linear(rows, columns, WeightScheme(bits, granularity, grid), torch.bfloat16)
            if bits == 8 and grid != "symmetric":
                with warnings.catch_warnings(action="ignore"):
                    choice = use_kernels(net, "torch-int8")["0"]
                assert choice.kernel == "plain"
                assert "does not fit" in choice.why
            else:
                check(net, "torch-int8")


@pytest.mark.parametrize("grid", ["symmetric", "half"])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_torch_int4_takes_few_bits(bits, grid):
    for granularity in ("tensor", "channel", 32, 64, 96):
        for rows, columns in [(64, 192), (16, 384), (32, 576)]:
            check(packed_linear(rows, columns, WeightScheme(bits, granularity, grid), torch.bfloat16), "torch-int4")


@needs_humming
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("grid", DEFAULT_GRIDS)
@pytest.mark.parametrize("bits", range(2, 9))
def test_humming_takes_every_width_and_grid(bits, grid, dtype):
    for granularity in ("tensor", "channel", 32, 128):
        for rows in (128, 72):
            check(packed_linear(rows, 256, WeightScheme(bits, granularity, grid), dtype).cuda(), "humming")


@needs_humming
def test_humming_takes_inputs_that_start_anywhere():
    net = packed_linear(128, 64, WeightScheme(4), torch.float16).cuda()
    inputs = torch.randn(3 * 64 + 1, device="cuda", dtype=torch.float16)[1:].view(3, 64)
    with torch.no_grad():
        expected = net(inputs)
        assert use_kernels(net, "humming")["0"].kernel == "humming"
        assert_close(net(inputs), expected)


@needs_auto_round
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_width_of_the_default_scheme_finds_a_kernel(dtype):
    for bits in range(2, 9):
        net = packed_linear(64, 96, nearest_scheme(bits), dtype)
        assert use_kernels(net)["0"].kernel != "plain"


@needs_auto_round
@pytest.mark.parametrize("shape", [(), (1,), (3, 2), (0,), (2, 0)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_inputs_of_any_shape_and_layout(shape, bias):
    net = packed_linear(6, 10, WeightScheme(3, 4, "half"), bias=bias)
    wide = torch.randn(*shape, 21)[..., 1::2]  # neither contiguous nor at the start of its memory
    with torch.no_grad():
        expected = net(wide)
        use_kernels(net, "auto-round")
        torch.testing.assert_close(net(wide), expected)
        assert net(wide).is_contiguous()


@needs_auto_round
def test_large_means_and_small_differences_keep_their_digits():
    net = packed_linear(8, 512, WeightScheme(2, "channel", "half"))
    inputs = 100 + torch.randn(4, 512)
    exact = inputs.double() @ net[0].quantized_rows().dequantize(torch.float64).T
    magnitude = inputs.abs().double() @ net[0].quantized_rows().dequantize(torch.float64).abs().T
    use_kernels(net, "auto-round")
    with torch.no_grad():
        found = net(inputs).double() - net[0].bias.double()
    assert ((found - exact).abs() / magnitude).max() < 1e-6


@pytest.mark.parametrize("name", list(KERNELS))
def test_why_not_is_a_reason_and_never_an_error(name):
    kernel = KERNELS[name]
    for device in ("cpu", "meta"):
        for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.int32):
            quantized = quantize_rows(torch.randn(3, 5), WeightScheme(6, 2, "asymmetric"))
            parts = (pack_codes(quantized.codes, 6), quantized.scale, quantized.zero_point)
            matrix = PackedMatrix(*(part.to(device) for part in parts), quantized.scheme, 3, 5)
            assert kernel.why_not(matrix, dtype) is None or " " in kernel.why_not(matrix, dtype)
    assert kernel.why_not(matrix, torch.float32).startswith("works on")
