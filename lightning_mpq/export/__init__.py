"""Packed models as files, for this library and for others."""

from .compressed_tensors import export_compressed_tensors
from .onnx import OnnxExport, export_onnx
from .safetensors import save
from .torchao import torchao_config

__all__ = [
    "OnnxExport",
    "export_compressed_tensors",
    "export_onnx",
    "save",
    "torchao_config",
]
