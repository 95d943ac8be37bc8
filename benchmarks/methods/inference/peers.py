"""torchao on the float model, and onnxruntime on our file."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from lightning_mpq import export_onnx

from ...tools.memory import resident_bytes
from .way import Way, relative_error


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
            exported = export_onnx(base, Path(folder) / "model.onnx", inputs)
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


def _tensor_bytes(tensor: Tensor) -> int:
    """Return the bytes of a tensor, or of the tensors that a subclass is made of."""
    if hasattr(tensor, "__tensor_flatten__"):
        return sum(_tensor_bytes(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
    return tensor.numel() * tensor.element_size()
