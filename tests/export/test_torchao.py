"""A policy that torchao applies to the float model: its own rounding, at our widths, blocks and grids."""

import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from lightning_mpq.export.torchao import torchao_config
from lightning_mpq.policy import BitPolicy
from lightning_mpq.quantizers import quantize_rows
from lightning_mpq.schemes import WeightScheme

SCHEMES = [
    WeightScheme(bits, granularity, grid, scale_dtype="float32")
    for bits in range(2, 9)
    for granularity in ("channel", 16)
    for grid in ("symmetric", "asymmetric")
]


def test_torchao_applies_the_policy():
    quantization = pytest.importorskip("torchao.quantization", reason="needs the extra torchao")
    torch.manual_seed(0)
    model = nn.ModuleList(nn.Linear(48, 5) for _ in range(len(SCHEMES) + 1))
    before = [layer.weight.detach().clone() for layer in model]
    config = torchao_config(BitPolicy({str(number): scheme for number, scheme in enumerate(SCHEMES)}))
    quantization.quantize_(model, config, filter_fn=None)
    for number, scheme in enumerate(SCHEMES):
        weight = model[number].weight
        assert weight.target_dtype == getattr(torch, f"int{scheme.bits}")
        assert tuple(weight.block_size) == (1, 48 if scheme.granularity == "channel" else 16)
        half = 2 ** (scheme.bits - 1)
        assert int(weight.qdata.min()) >= -half
        assert int(weight.qdata.max()) < half
        if scheme.grid == "symmetric":
            assert not weight.zero_point.any()
        else:
            assert weight.zero_point.any()
        rounded = weight.dequantize()
        blocks = before[number].unflatten(1, (-1, weight.block_size[1]))
        step = (blocks.amax(2) - blocks.amin(2)).repeat_interleave(weight.block_size[1], 1) / (2**scheme.bits - 1)
        error = (rounded - before[number]).abs()
        assert bool((error <= (1.01 if scheme.grid == "asymmetric" else 2.01) * step + 1e-6).all()), scheme
        own = quantize_rows(before[number], scheme).dequantize()
        assert float((rounded - own).square().mean()) <= float((2 * step).square().mean())
    assert torch.equal(model[-1].weight, before[-1])  # not in the policy


@pytest.mark.parametrize(
    ("scheme", "reason"),
    [
        (WeightScheme(3, grid="half"), "no 'half' grid"),
        (WeightScheme(3, "tensor"), "not for a whole tensor"),
        (WeightScheme(3, clip="mse"), "not with clip='mse'"),
        (WeightScheme(3, rounding="second_order"), "rounding='second_order'"),
    ],
)
def test_what_torchao_cannot_carry_is_refused_by_name(scheme, reason):
    pytest.importorskip("torchao.quantization", reason="needs the extra torchao")
    policy = BitPolicy({"fine": WeightScheme(4), "both": scheme}, {"both": ("first", "second")})
    with pytest.raises(ValueError, match=rf"cannot carry the layer 'first' \({scheme}\): .*{reason}"):
        torchao_config(policy)
    torchao_config(BitPolicy({"both": replace(scheme, grid="symmetric", granularity=8, clip="absmax",
                                              rounding="nearest")}))  # fmt: skip


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(ImportError, match=r"needs the package 'torchao.*pip install \"lightning_mpq\[torchao\]\""):
        torchao_config(BitPolicy({"a": WeightScheme(4)}))
