"""Mixed-precision quantization for PyTorch Lightning in which the loss decides the bits.

Example::

    import lightning as L
    import lightning_mpq as mpq

    mixed = mpq.MixedPrecisionQuantization(mpq.Budget(average_bits=3.0))
    L.Trainer(max_epochs=10, callbacks=[mixed]).fit(model, data)     # ends with a packed model and a report on it
    mpq.save(model, "packed")
    model = mpq.load("packed", Net())                                # anywhere else

The same can be done step by step: `find_groups`, `make_candidates`, `round_candidates`, `profile`, `allocate`,
`quantize`; see the docstring of each.
"""

from importlib.metadata import PackageNotFoundError, version

from .allocation import (
    Allocation,
    Budget,
    CustomCost,
    LatencyTable,
    Rules,
    allocate,
    changes,
    explain,
    frontier,
    what_if,
)
from .curvature import TaylorModel, profile
from .curvature.estimators.base import Estimator
from .errors import BudgetExceededError, CorruptModelError, InfeasibleBudgetError, NonFiniteError
from .export import export_compressed_tensors, export_onnx, save, torchao_config
from .finetune import fake_quantize
from .grids.base import Grid
from .grids.registry import register_grid
from .groups.candidates import make_candidates
from .groups.groups import find_groups
from .modules import clipped_inputs, set_memory, use_kernels
from .modules.latency import measure_latency
from .moved import moved
from .network.calibration import Calibration
from .network.likelihood import Bernoulli, Categorical, Gaussian, Likelihood
from .network.named_weights import register_layer
from .options import CandidateOptions, CurvatureOptions, FinetuneOptions, RepairOptions, SelectionOptions, SolverOptions
from .pipeline.estimate import Estimate, estimate
from .pipeline.quantize import quantize
from .policy import BitPolicy
from .report import Report, print_report
from .rounding.independent import round_candidates
from .schemes import InputScheme, LayerScheme, WeightScheme
from .targets import Target, export_for, verify
from .trainer.callback import MixedPrecisionQuantization
from .trainer.checkpoints.loading import load
from .trainer.checkpoints.mixin import PackedCheckpoints

try:
    __version__ = version("lightning_mpq")
except PackageNotFoundError:  # run from a folder that was not installed
    __version__ = "0.0.0"

__all__ = [
    # the callback and its settings
    "MixedPrecisionQuantization",
    "Budget",
    "CandidateOptions",
    "CurvatureOptions",
    "SolverOptions",
    "SelectionOptions",
    "RepairOptions",
    "FinetuneOptions",
    # the steps one by one
    "estimate",
    "find_groups",
    "make_candidates",
    "round_candidates",
    "profile",
    "allocate",
    "quantize",
    "fake_quantize",
    # looking at decisions
    "frontier",
    "explain",
    "what_if",
    "changes",
    "print_report",
    # packed models: on disk, faster, elsewhere
    "save",
    "load",
    "PackedCheckpoints",
    "use_kernels",
    "set_memory",
    "export_for",
    "verify",
    "clipped_inputs",
    "export_onnx",
    "export_compressed_tensors",
    "torchao_config",
    # what the steps take and return
    "WeightScheme",
    "InputScheme",
    "LayerScheme",
    "BitPolicy",
    "Calibration",
    "TaylorModel",
    "Allocation",
    "Report",
    "Estimate",
    # parts of your own
    "register_layer",
    "Grid",
    "register_grid",
    "Estimator",
    "Likelihood",
    "Categorical",
    "Gaussian",
    "Bernoulli",
    "CustomCost",
    "Target",
    "Rules",
    "LatencyTable",
    "measure_latency",
    # what may go wrong
    "BudgetExceededError",
    "CorruptModelError",
    "InfeasibleBudgetError",
    "NonFiniteError",
    "__version__",
]


def __getattr__(name: str) -> object:
    return moved(name)
