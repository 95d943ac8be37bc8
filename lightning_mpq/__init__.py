"""Mixed-precision quantization for PyTorch Lightning in which the loss decides the bits."""

from .allocation import Allocation, Budget, SolveStatus, allocate
from .callback import MixedPrecisionQuantization
from .candidates import Candidate, default_scheme, make_candidates
from .correction import reestimate_batchnorm
from .curvature import Bernoulli, Categorical, Gaussian, Likelihood, TaylorModel, profile
from .errors import CorruptModelError, InfeasibleBudgetError, NonFiniteError
from .export import load, load_checkpoint, save
from .groups import LayerGroup, LayerGroups, find_groups
from .options import CandidateOptions, CurvatureOptions, SolverOptions
from .policy import BitPolicy, WeightScheme
from .quantize import quantize
from .report import Report, print_report

__all__ = [
    # the callback and its settings
    "MixedPrecisionQuantization",
    "Budget",
    "CandidateOptions",
    "CurvatureOptions",
    "SolverOptions",
    # the steps one by one
    "find_groups",
    "make_candidates",
    "profile",
    "allocate",
    "quantize",
    "reestimate_batchnorm",
    "save",
    "load",
    "load_checkpoint",
    "print_report",
    # what the steps return and take
    "LayerGroup",
    "LayerGroups",
    "WeightScheme",
    "BitPolicy",
    "Candidate",
    "default_scheme",
    "TaylorModel",
    "Likelihood",
    "Categorical",
    "Gaussian",
    "Bernoulli",
    "Allocation",
    "SolveStatus",
    "Report",
    # what may go wrong
    "CorruptModelError",
    "InfeasibleBudgetError",
    "NonFiniteError",
]
