"""Where the levels of a quantized weight lie: one grid a file, found by name."""

from .base import Grid, IntegerForm
from .levels import Levels
from .registry import register_grid
from .table import TableGrid
from .uniform import UniformGrid

__all__ = ["Grid", "IntegerForm", "Levels", "TableGrid", "UniformGrid", "register_grid"]
