"""The ways to run one model that the inference benchmark compares: float, our packed layers, and other toolkits."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

import lightning_mpq as mpq
from lightning_mpq.modules import pack_model, set_memory, stored_bytes, use_kernels

from .memory import resident_bytes


@dataclass(frozen=True)
class Way:
    """One way to run a model.

    Attributes:
        name: What it is called in tables.
        call: Computes the outputs once.
        stored: Bytes on disk of parameters and buffers, or of the exported file.
        held: Bytes in memory between calls: weights and caches, or what a session has added to the process.
        error: Greatest difference from the packed model's plain outputs, relative to the greatest output; None for
            the float model.
        note: Kernel that multiplied, containers, or whatever else explains the row.
    """

    name: str
    call: Callable[[], Any]
    stored: int
    held: int | None
    error: float | None = None
    note: str = ""


def float_ways(model: nn.Module, inputs: Tensor) -> Iterator[Way]:
    """Yield the float model in float32 and in bfloat16."""
    for dtype in (torch.float32, torch.bfloat16):
        net, values = copy.deepcopy(model).to(dtype), inputs.to(dtype)
        size = stored_bytes(net).total
        yield Way(str(dtype).removeprefix("torch."), partial(net, values), size, size)


def packed_model(model: nn.Module, bits: int) -> nn.Module:
    """Return a packed copy with the default scheme of a width on every layer."""
    net = copy.deepcopy(model)
    groups = mpq.find_groups(net)
    layers = {group.name: group.layers for group in groups}
    pack_model(net, mpq.BitPolicy({name: mpq.default_scheme(bits) for name in layers}, layers))
    return net


def packed_ways(base: nn.Module, bits: int, inputs: Tensor, skipped: list[str]) -> Iterator[Way]:
    """Yield a packed model: dequantized at each call, kept dequantized, and by each kernel that takes it."""
    expected = base(inputs)
    for name, dtype in (
        ("plain", torch.float32), ("fast", torch.float32), ("auto-round", torch.float32), ("plain", torch.bfloat16),
        ("torch-int4", torch.bfloat16), ("torch-int8", torch.bfloat16),
    ):  # fmt: skip
        net = copy.deepcopy(base).to(dtype)
        note = ""
        if name == "fast":
            set_memory(net, "fast")
        elif name != "plain":
            with warnings.catch_warnings(action="ignore"):
                choices = use_kernels(net, name).choices
            used = sum(choice.kernel == name for choice in choices)
            if not used:
                reason = choices[-1].why  # of the last layer, which is a Linear one
                skipped.append(f"{name} at {bits} bits: {reason}")
                continue
            note = f"{used} of {len(choices)} layers"
        values = inputs.to(dtype)
        size = stored_bytes(net)
        yield Way(
            f"{name}, {str(dtype).removeprefix('torch.')}",
            partial(net, values),
            size.total,
            size.total + size.cached,
            relative_error(net(values), expected),
            note,
        )


def torchao_way(model: nn.Module, bits: int, inputs: Tensor, skipped: list[str]) -> Iterator[Way]:
    """Yield torchao's weight-only integers of the same width, one scale per row; it leaves convolutions in float."""
    try:
        from torchao.quantization import IntxWeightOnlyConfig, quantize_
        from torchao.quantization.granularity import PerAxis
    except ImportError as error:
        skipped.append(f"torchao: {error}")
        return
    net = copy.deepcopy(model)
    config = IntxWeightOnlyConfig(weight_dtype=getattr(torch, f"int{bits}"), granularity=PerAxis(0))
    with warnings.catch_warnings(action="ignore"):
        quantize_(net, config)
    size = sum(_tensor_bytes(value) for value in [*net.parameters(), *net.buffers()])
    yield Way("torchao IntxWeightOnlyConfig", lambda: net(inputs), size, size)


def onnxruntime_ways(base: nn.Module, bits: int, inputs: Tensor, threads: int, skipped: list[str]) -> Iterator[Way]:
    """Yield onnxruntime on the file that `export_onnx` writes: by its default, and with products in float32."""
    try:
        import onnxruntime
    except ImportError as error:
        skipped.append(f"onnxruntime: {error}")
        return
    expected = base(inputs)
    with TemporaryDirectory() as folder:
        try:
            exported = mpq.export_onnx(base, Path(folder) / "model.onnx", inputs)
        except (ImportError, ValueError) as error:
            skipped.append(f"onnxruntime at {bits} bits: {error}")
            return
        containers = ", ".join(sorted(set(exported.containers.values())))
        feed = inputs.numpy()
        for name, level in (("onnxruntime", None), ("onnxruntime, float32 products", "1")):
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            options.log_severity_level = 3
            if level is not None:
                options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", level)
            before = resident_bytes()
            session = onnxruntime.InferenceSession(exported.path, options, providers=["CPUExecutionProvider"])
            feeds = {session.get_inputs()[0].name: feed}
            found = torch.from_numpy(session.run(None, feeds)[0])
            after = resident_bytes()
            yield Way(
                name,
                partial(session.run, None, feeds),
                exported.file_bytes,
                None if before is None or after is None else max(0, after - before),
                relative_error(found, expected),
                f"{containers}, {exported.fused} fused",
            )


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Return the greatest difference relative to the greatest expected output."""
    wide = expected.to(torch.float32)
    return float((found.to(torch.float32) - wide).abs().max() / wide.abs().max())


def _tensor_bytes(tensor: Tensor) -> int:
    """Return the bytes of a tensor, or of the tensors that a subclass is made of."""
    if hasattr(tensor, "__tensor_flatten__"):
        return sum(_tensor_bytes(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
    return tensor.numel() * tensor.element_size()
