"""Settings of each stage as plain values, so that a callback or a YAML can carry them."""

from .candidates import CandidateOptions
from .curvature import CurvatureOptions
from .finetuning import FinetuneOptions
from .repair import RepairOptions
from .selection import SelectionOptions
from .solver import SolverOptions

__all__ = [
    "CandidateOptions",
    "CurvatureOptions",
    "FinetuneOptions",
    "RepairOptions",
    "SelectionOptions",
    "SolverOptions",
]
