"""Packed models as files, for this library and for others."""

from .checkpoint import load_checkpoint
from .safetensors import load, save

__all__ = ["load", "load_checkpoint", "save"]
