"""Packed models as files, for this library and for others."""

from .safetensors import load, save

__all__ = ["load", "save"]
