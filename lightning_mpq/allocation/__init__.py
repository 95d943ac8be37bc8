"""A Taylor model and a budget in, a plan with its certificate out."""

from .allocation import Allocation
from .budget import Budget, CustomCost
from .latency import LatencyTable
from .rules import Rules
from .solver import allocate
from .status import SolveStatus

__all__ = ["Allocation", "Budget", "CustomCost", "LatencyTable", "Rules", "SolveStatus", "allocate"]
