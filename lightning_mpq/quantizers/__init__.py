"""How one weight tensor is rounded to codes, scales and zero points."""

from .input_moments import InputMoment
from .nearest import quantize_rows
from .quantized_rows import QuantizedRows
from .second_order import RoundedRows, RowRounding, round_rows

__all__ = ["InputMoment", "QuantizedRows", "RoundedRows", "RowRounding", "quantize_rows", "round_rows"]
