"""Mixed-precision quantization for PyTorch Lightning in which the loss decides the bits.

Example::

    import lightning as L
    import lightning_mpq as mpq

    mixed = mpq.MixedPrecisionQuantization(mpq.Budget(average_bits=3.0))
    L.Trainer(max_epochs=10, callbacks=[mixed]).fit(model, data)     # ends with a packed model and a report on it
    mpq.save(model, "packed")
    model = mpq.load("packed", model=Net())                          # anywhere else

The steps behind it can be taken one by one: `find_groups`, `make_candidates`, `round_candidates`, `profile`,
`allocate`, `quantize`; see the docstring of each.
"""

from .allocation import (
    Allocation,
    Budget,
    CustomCost,
    Frontier,
    LatencyTable,
    Rules,
    SolveStatus,
    allocate,
    alternatives,
    explain,
    frontier,
)
from .curvature import TaylorModel, profile, shrink
from .curvature.merge import merge
from .errors import CorruptModelError, InfeasibleBudgetError, NonFiniteError
from .export import (
    OnnxExport,
    export_compressed_tensors,
    export_onnx,
    load,
    save,
    torchao_config,
)
from .finetune import fake_quantize
from .groups.candidates import Candidate, default_scheme, make_candidates
from .groups.groups import LayerGroup, LayerGroups, find_groups
from .modules import KernelChoice, KernelChoices, set_memory, use_kernels
from .modules.latency import measure_latency
from .network.likelihood import Bernoulli, Categorical, Gaussian, Likelihood
from .network.named_weights import register_layer
from .options import (
    CandidateOptions,
    CurvatureOptions,
    FinetuneOptions,
    LoopOptions,
    RepairOptions,
    SolverOptions,
)
from .pipeline.quantize import quantize
from .policy import BitPolicy, WeightScheme
from .repair.batchnorm import reestimate_batchnorm
from .repair.biases import correct_biases
from .repair.output_means import output_means
from .report import Report, print_report
from .rounding.independent import round_candidates, second_order_schemes
from .rounding.rounded_weights import RoundedWeights
from .rounding.sequential import round_sequentially
from .trainer.callback import MixedPrecisionQuantization
from .trainer.checkpoints.checkpoint import load_checkpoint
from .trainer.checkpoints.mixin import PackedCheckpoints, load_from_checkpoint

__all__ = [
    # the callback and its settings
    "MixedPrecisionQuantization",
    "Budget",
    "CandidateOptions",
    "CurvatureOptions",
    "SolverOptions",
    "LoopOptions",
    "RepairOptions",
    "FinetuneOptions",
    # the steps one by one
    "find_groups",
    "register_layer",
    "make_candidates",
    "round_candidates",
    "round_sequentially",
    "profile",
    "shrink",
    "merge",
    "allocate",
    "frontier",
    "alternatives",
    "explain",
    "measure_latency",
    "quantize",
    "fake_quantize",
    "reestimate_batchnorm",
    "output_means",
    "correct_biases",
    "use_kernels",
    "set_memory",
    "save",
    "load",
    "load_checkpoint",
    "load_from_checkpoint",
    "PackedCheckpoints",
    "export_onnx",
    "export_compressed_tensors",
    "torchao_config",
    "print_report",
    # what the steps return and take
    "LayerGroup",
    "LayerGroups",
    "WeightScheme",
    "BitPolicy",
    "Candidate",
    "default_scheme",
    "second_order_schemes",
    "RoundedWeights",
    "TaylorModel",
    "Likelihood",
    "Categorical",
    "Gaussian",
    "Bernoulli",
    "Allocation",
    "SolveStatus",
    "Rules",
    "CustomCost",
    "LatencyTable",
    "Frontier",
    "Report",
    "OnnxExport",
    "KernelChoice",
    "KernelChoices",
    # what may go wrong
    "CorruptModelError",
    "InfeasibleBudgetError",
    "NonFiniteError",
]
