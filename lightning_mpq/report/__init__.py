"""What was gained and lost: measured beside predicted, as values, as a table, as JSON."""

from .records import Report
from .rows import FinetuningRow, GroupRow, ModelRow, PairsRow, RepairRow, TargetRow, TrialRow
from .sweep import Sweep, SweepJob
from .table import print_report

__all__ = [
    "FinetuningRow",
    "GroupRow",
    "ModelRow",
    "PairsRow",
    "RepairRow",
    "Report",
    "Sweep",
    "SweepJob",
    "TargetRow",
    "TrialRow",
    "print_report",
]
