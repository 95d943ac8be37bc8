"""Packed models as files, for this library and for others."""

from ..trainer.checkpoints.checkpoint import load_checkpoint
from ..trainer.checkpoints.mixin import PackedCheckpoints, load_from_checkpoint
from .compressed_tensors import export_compressed_tensors
from .onnx import OnnxExport, export_onnx
from .safetensors import load, save
from .torchao import torchao_config

__all__ = [
    "OnnxExport",
    "PackedCheckpoints",
    "export_compressed_tensors",
    "export_onnx",
    "load",
    "load_checkpoint",
    "load_from_checkpoint",
    "save",
    "torchao_config",
]
