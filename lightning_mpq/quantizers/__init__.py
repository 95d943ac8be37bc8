"""How one weight tensor is rounded to codes, scales and zero points."""

from .grid import QuantizedRows
from .nearest import quantize_rows

__all__ = ["QuantizedRows", "quantize_rows"]
