"""Float networks in onnxruntime, and its own ways to quantize them to 8 by 8 bits."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class Session(nn.Module):
    """A file in onnxruntime on one thread, called like a network of one input."""

    def __init__(self, path: Path) -> None:
        """Load it."""
        import onnxruntime

        super().__init__()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.name = self.session.get_inputs()[0].name

    def forward(self, inputs: Tensor) -> Tensor:
        """Return its outputs."""
        return torch.from_numpy(self.session.run(None, {self.name: inputs.numpy()})[0])


def export_float(network: nn.Module, inputs: Tensor, path: Path) -> None:
    """Write a network for any number of samples, of which it is shown two."""
    sizes = ({0: torch.export.Dim("batch")},)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network, (inputs[:2],), str(path), dynamo=True, dynamic_shapes=sizes, external_data=False, verbose=False
        )


def quantize_statically(
    path: Path, batches: Sequence[Tensor], written: Path, products_only: bool = False, reduce_range: bool = False
) -> Path:
    """Quantize a float file: weights by channels, ranges of activations by all values.

    Args:
        path: The float file.
        batches: What its input is calibrated on.
        written: Where the quantized one is written.
        products_only: Whether nothing is quantized but products with weights, and what they read.
        reduce_range: Whether weights have 7 of 8 bits, as its documentation advises for processors without VNNI.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    prepared, name = _prepared(path, written), Session(path).name

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(batches)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {name: batch.numpy()}

    only = {"op_types_to_quantize": ["MatMul", "Gemm"], "extra_options": {"MatMulConstBOnly": True}}
    quantize_static(
        str(prepared), str(written), Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
        weight_type=QuantType.QInt8, activation_type=QuantType.QUInt8, reduce_range=reduce_range,
        **(only if products_only else {}),
    )  # fmt: skip
    return written


def quantize_dynamically(path: Path, written: Path) -> Path:
    """Quantize products with weights in a float file: weights by channels, what they read by its range at each call."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        str(_prepared(path, written)), str(written), op_types_to_quantize=["MatMul", "Gemm"], per_channel=True,
        weight_type=QuantType.QInt8, extra_options={"MatMulConstBOnly": True},
    )  # fmt: skip
    return written


def _prepared(path: Path, written: Path) -> Path:
    """Return a file with the shapes that onnxruntime's quantizers ask for."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = written.with_suffix(".prepared.onnx")
    quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)  # which fails on what torch.export writes
    return prepared
