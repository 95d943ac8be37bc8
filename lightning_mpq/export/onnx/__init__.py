"""Packed models as standard ONNX (extra ``onnx``)."""

from .exporting import OnnxExport, export_onnx

__all__ = ["OnnxExport", "export_onnx"]
