"""What the bounds of a budget are counted from: a forward pass, a file that is written."""

from __future__ import annotations

from dataclasses import replace

from ..allocation import Budget
from ..allocation.workload import Workload
from ..export.example_inputs import ExampleInputs
from ..modules.workload import measured as with_workload
from ..network.calibration import Calibration
from ..targets import with_file_rest
from ..tools.distributed import on_rank_zero
from .profiling import Profiled
from .settings import JobSettings


def counted_budget(calibration: Calibration, settings: JobSettings, known: Profiled) -> Budget:
    """Return the budget with what its bounds are counted from: a forward pass, a file that is written.

    Of several processes rank 0 counts, and all get the numbers: costs of the user's own may not travel.

    Raises:
        ValueError: If nobody can tell how the target's file is to be called.
    """
    workload, rest = on_rank_zero(lambda: _counted(calibration, settings, known))
    return replace(settings.budget, workload=workload, file_rest=rest)


def _counted(calibration: Calibration, settings: JobSettings, known: Profiled) -> tuple[Workload | None, int | None]:
    model, candidates = calibration.model, known.taylor.candidates
    budget = with_workload(settings.budget, model, calibration, known.groups, candidates)
    if not budget.needs_file_rest:
        return budget.workload, budget.file_rest
    if settings.forward_fn is not None:
        raise ValueError(
            "file_bytes is counted from a file that is written, and forward_fn= hides what forward takes. Say it by "
            "lightning_mpq.targets.with_file_rest(budget, target, model, groups, candidates, example_inputs).file_rest,"
            " and pass Budget(file_bytes=..., file_rest=...)."
        )
    batch = next(calibration.filled())
    inputs = ExampleInputs.of_batch(model, batch)
    budget = with_file_rest(budget, settings.target, model, known.groups, candidates, inputs)
    return budget.workload, budget.file_rest
