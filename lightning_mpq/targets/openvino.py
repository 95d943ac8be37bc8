"""OpenVINO: the ONNX file read by it, and saved as its own IR, in which codes of 4 and 8 bits stay as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CorruptModelError
from ..export.example_inputs import ExampleInputs
from ..export.extras import require
from ..export.onnx.containers import FOUR_BITS_OPSET, held_bits
from ..export.onnx.exporting import export_onnx
from ..schemes import InputScheme, WeightScheme
from .base import StoredLayer, Target
from .onnxruntime import OnnxRuntime

GRAPH_NAME, WEIGHTS_NAME = "model.xml", "model.bin"
_PARTS = ("levels", "scale", "zero_point", "half")
_PURPOSE = "The target 'openvino'"


class OpenVino(OnnxRuntime):
    """OpenVINO 2026.4, by a folder with its IR: ``model.xml`` and ``model.bin``.

    It reads no ONNX types of 2 bits, so that codes lie in 4 or 8. On the CPU it rounds the inputs of products to 8 bits
    by default.

    Args:
        dynamic_batch: As for `OnnxRuntime`.
        dynamic_length: As for `OnnxRuntime`.
    """

    name = "openvino"
    extra = "openvino"
    packages = ("openvino", *OnnxRuntime.packages)
    ending = ""

    def __init__(self, *, dynamic_batch: bool = True, dynamic_length: bool | None = None) -> None:
        super().__init__(dynamic_batch=dynamic_batch, dynamic_length=dynamic_length, integer_products=False)

    def why_not_inputs(self, layer: nn.Module, scheme: InputScheme) -> str | None:
        """See `Target.why_not_inputs`."""
        return "it rounds to the code beside here and there, which is not verified (it reads the file of export_onnx)"

    def stored_bits(self, layer: nn.Module, scheme: WeightScheme) -> int:
        """See `Target.stored_bits`."""
        return held_bits(layer, scheme, two_bits=False)

    def write(self, model: nn.Module, path: Path, inputs: ExampleInputs) -> None:
        """See `Target.write`; the ONNX file that it is made of is checked in onnxruntime first."""
        openvino = require(self.extra, "openvino", _PURPOSE)
        path.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory() as folder:
            found = export_onnx(model, Path(folder) / "model.onnx", inputs, opset=FOUR_BITS_OPSET, **self.dynamic)
            read = openvino.Core().read_model(found.path)
            openvino.save_model(read, path / GRAPH_NAME, compress_to_fp16=False)

    def read(self, path: Path) -> Mapping[str, StoredLayer]:
        """See `Target.read`."""
        parts: dict[str, dict[str, Any]] = {}
        for operation in self._model(path).get_ops():
            stem, _, part = operation.get_friendly_name().rpartition(".")
            if operation.get_type_name() == "Constant" and part in _PARTS:
                parts.setdefault(stem.removesuffix(".weight"), {})[part] = operation
        found = {}
        for layer, own in parts.items():
            if _PARTS[0] in own:
                values = [own[part] for part in _PARTS if part in own]
                content = [bytes(value.get_data().tobytes()) for value in values]
                bits = own[_PARTS[0]].get_element_type().bitwidth
                sizes = [value.get_byte_size() for value in values]
                found[layer] = StoredLayer(bits, sum(sizes), sha256(b"".join(content)).hexdigest())
        return found

    def outputs(self, path: Path, batches: Sequence[ExampleInputs], model: nn.Module | None) -> list[list[Tensor]]:
        """See `Target.outputs`: with products in float32."""
        openvino = require(self.extra, "openvino", _PURPOSE)
        exact = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
        compiled = openvino.Core().compile_model(self._model(path), "CPU", exact)
        names = [entry.any_name for entry in compiled.inputs]
        outputs = []
        for batch in batches:
            results = compiled(batch.arrays(names))
            outputs.append([torch.as_tensor(results[entry]).clone() for entry in compiled.outputs])
        return outputs

    error = Target.error

    def _model(self, path: Path) -> Any:
        openvino = require(self.extra, "openvino", _PURPOSE)
        try:
            return openvino.Core().read_model(path / GRAPH_NAME)
        except RuntimeError as error:
            raise CorruptModelError(f"{path} holds no model that OpenVINO reads: {str(error).strip()}") from error
