"""The ways to run one model that the inference benchmark compares: float, our packed layers, and other toolkits."""

from .ours import float_ways, packed_ways
from .peers import onnxruntime_ways, torchao_way
from .way import Way, relative_error

__all__ = ["Way", "float_ways", "onnxruntime_ways", "packed_ways", "relative_error", "torchao_way"]
