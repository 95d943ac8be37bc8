"""Packed models as files, for this library and for others."""

from .checkpoint import load_checkpoint
from .onnx import OnnxExport, export_onnx
from .packed_checkpoints import PackedCheckpoints, load_from_checkpoint
from .safetensors import load, save

__all__ = ["OnnxExport", "PackedCheckpoints", "export_onnx", "load", "load_checkpoint", "load_from_checkpoint", "save"]
