"""Names of version 0.1 that are elsewhere now: they work for one more release, and say where they went."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import Any

from .grids.registry import DEFAULT_GRIDS
from .groups.candidates import offered_schemes
from .tools.warning import warn

_MOVED = {
    "Candidate": "lightning_mpq.groups.candidates.Candidate",
    "Frontier": "lightning_mpq.allocation.Frontier",
    "KernelChoice": "lightning_mpq.modules.KernelChoice",
    "KernelChoices": "lightning_mpq.modules.KernelChoices",
    "LayerGroup": "lightning_mpq.groups.groups.LayerGroup",
    "LayerGroups": "lightning_mpq.groups.groups.LayerGroups",
    "LoopOptions": "lightning_mpq.options.SelectionOptions",
    "OnnxExport": "lightning_mpq.export.OnnxExport",
    "RoundedWeights": "lightning_mpq.rounding.rounded_weights.RoundedWeights",
    "SolveStatus": "lightning_mpq.allocation.SolveStatus",
    "correct_biases": "lightning_mpq.repair.biases.correct_biases",
    "load_checkpoint": "lightning_mpq.load",
    "load_from_checkpoint": "lightning_mpq.trainer.checkpoints.mixin.load_from_checkpoint",
    "merge": "lightning_mpq.curvature.merge.merge",
    "output_means": "lightning_mpq.repair.output_means.output_means",
    "reestimate_batchnorm": "lightning_mpq.repair.batchnorm.reestimate_batchnorm",
    "round_sequentially": "lightning_mpq.rounding.sequential.round_sequentially",
    "second_order_schemes": "lightning_mpq.moved.second_order_schemes",
    "shrink": "lightning_mpq.curvature.shrink",
}


def moved(name: str) -> Any:
    """Return what a name of version 0.1 stood for, with a warning that says where it is now.

    Raises:
        AttributeError: If there was no such name.
    """
    if name not in _MOVED:
        raise AttributeError(f"module 'lightning_mpq' has no attribute {name!r}")
    module, _, attribute = _MOVED[name].rpartition(".")
    instead = "make_candidates(groups, bits)" if module == __name__ else _MOVED[name]
    warn(f"lightning_mpq.{name} is {instead} now.", DeprecationWarning)
    return getattr(import_module(module), attribute)


def second_order_schemes(
    bits: Iterable[int] = range(2, 9), granularity: Iterable[str | int] = ("channel",), grids: Iterable[str] = ()
) -> tuple[Any, ...]:
    """Return the schemes that `make_candidates` offers by itself now."""
    return offered_schemes(bits, granularities=granularity, grids=tuple(grids) or DEFAULT_GRIDS)
