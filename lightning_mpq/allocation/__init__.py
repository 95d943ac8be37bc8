"""A Taylor model and a budget in, a policy with its certificate out."""

from .allocate import allocate
from .allocation import Allocation
from .budget import Budget, CustomCost
from .conversions import with_conversions
from .explanation import Explanation, explain
from .frontier import Frontier, frontier
from .latency_table import LatencyTable
from .rules import Rules
from .status import SolveStatus
from .what_if import changes, what_if
from .workload import Workload

__all__ = [
    "Allocation",
    "Budget",
    "CustomCost",
    "Explanation",
    "Frontier",
    "LatencyTable",
    "Rules",
    "SolveStatus",
    "Workload",
    "allocate",
    "changes",
    "explain",
    "frontier",
    "what_if",
    "with_conversions",
]
