"""An ONNX model run by onnxruntime beside the PyTorch model that it came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
import onnxruntime
import torch
from torch import Tensor

from ..example_inputs import ExampleInputs
from ..outputs import flat, relative_error
from .trace import FIXED, succeeds

EXACT = {"session.qdq_matmulnbits_accuracy_level": "1"}
"""Products in float32. The default of onnxruntime rounds the inputs of fused products to 8 bits."""
OF_INTEGERS = {
    "ConvInteger", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QLinearConv", "QLinearMatMul",
}  # fmt: skip
"""Operations of onnxruntime on integers and integers."""
ROUGH = 0.5
"""Relative error of that default that is no longer rounding but a wrong result."""

TOLERANCE_KEY = "lightning_mpq.tolerance"
"""Where a file says how far it may be from PyTorch because of what it rounds itself."""


def tolerance_of(content: bytes, default: float) -> float:
    """Return what a file says under `TOLERANCE_KEY`, or a default."""
    said = {entry.key: entry.value for entry in onnx.load_from_string(content).metadata_props}
    return float(said.get(TOLERANCE_KEY, default))


@dataclass(frozen=True)
class Comparison:
    """How far onnxruntime is from PyTorch, relative to the largest output.

    Attributes:
        error: With products in float32.
        default_error: With onnxruntime's default.
        fused: Products that it computes from integers.
        integers: Convolutions and products of integers and integers.
    """

    error: float
    default_error: float
    fused: int
    integers: int


def compare(content: bytes, batches: Sequence[ExampleInputs], expected: Sequence[Any], tolerance: float) -> Comparison:
    """Run a model in onnxruntime on the CPU and compare with what PyTorch returned.

    Args:
        content: The ONNX file.
        batches: Inputs; those by position in the order of the model's.
        expected: What the PyTorch model returned for each.
        tolerance: Largest relative error with products in float32.

    Raises:
        ValueError: If onnxruntime cannot run the model, or the results differ by more.
    """
    try:
        onnx.checker.check_model(content, full_check=True)
        exact, operations = _run(content, batches, EXACT)
        default, _ = _run(content, batches, {})
    except Exception as reason:  # onnxruntime's errors share no type of their own
        only_one_size = len(batches) > 1 and succeeds(lambda: _run(content, batches[:1], EXACT))
        advice = f" {FIXED}" if only_one_size else ""
        raise ValueError(
            f"onnxruntime {onnxruntime.__version__} cannot run the exported model, and nothing was written: "
            f"{str(reason).strip()}{advice}"
        ) from reason
    wanted = [flat(outputs) for outputs in expected]
    error, default_error = (
        max(relative_error(own, other) for own, other in zip(found, wanted, strict=True)) for found in (exact, default)
    )
    for difference, allowed in ((error, tolerance), (default_error, max(tolerance, ROUGH))):
        if not difference <= allowed:
            raise ValueError(
                f"onnxruntime {onnxruntime.__version__} and PyTorch differ by {difference:.3g} of the largest output, "
                f"more than {allowed:g}; nothing was written. Try other example inputs, or a larger tolerance for a "
                "model in half precision."
            )
    integers = sum(operation in OF_INTEGERS for operation in operations)
    return Comparison(error, default_error, fused=operations.count("MatMulNBits"), integers=integers)


def _run(
    content: bytes, batches: Sequence[ExampleInputs], config: Mapping[str, str]
) -> tuple[list[list[Tensor]], list[str]]:
    """Return the outputs for each batch, and the operations that onnxruntime made of the graph."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns that the graph which it optimized here is for this machine
    for key, value in config.items():
        options.add_session_config_entry(key, value)
    with TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        graph = onnx.load(options.optimized_model_filepath).graph
    names = [description.name for description in session.get_inputs()]
    outputs = [[torch.as_tensor(value) for value in session.run(None, batch.arrays(names))] for batch in batches]
    return outputs, [node.op_type for node in graph.node]
