"""Solve one problem, by us or by a peer, and say how far it was proved, and in which time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import cast

import numpy as np

from lightning_mpq import frontier
from lightning_mpq.allocation.solver.difference_form import difference_form
from lightning_mpq.allocation.solver.engine import Solution, solve
from lightning_mpq.allocation.solver.problem import Problem

from ...methods.allocation_peers import PEERS
from ...methods.relaxation_peers import RELAXATIONS
from ...problems.allocation_instances import resnet20_taylor
from ...tools.memory import transient_bytes
from ...tools.results import Row
from .cases import Case, frontier_name

GAP = 1e-3


def measure(case: Case) -> Iterator[Row]:
    """Solve a case and yield its row: value, gap, seconds, memory in matrices, the additive excess."""
    problem = cast(Problem, case.problem())
    found: list[Solution] = []
    wall, processor = time.perf_counter(), time.process_time()
    memory = transient_bytes(lambda: found.append(_solved(problem, case)))
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    solution = found[0]
    row: Row = {
        "instance": case.name,
        "solver": "lightning_mpq",
        "groups": problem.group_count,
        "candidates": len(problem.group),
        "value": solution.value,
        "gap": relative_gap(solution.value, solution.bound),
        "wall_seconds": round(wall, 3),
        "processor_seconds": round(processor, 3),
        "nodes": solution.nodes,
        "status": solution.status.name,
        "memory": _in_matrices(memory, problem),
        "steps": {step: round(seconds, 3) for step, seconds in solution.seconds.items()},
    }
    if not case.additive:
        additive = solve(problem, gap=GAP, time_limit=10, additive=True)
        row["additive_excess"] = (problem.value(additive.selection) - solution.value) / abs(solution.value)
    yield row


def _in_matrices(memory: int | None, problem: Problem) -> float | None:
    """Return memory beside the curvature, which is 1; None where that is so small that all else outweighs it."""
    matrix = problem.curvature.nbytes
    return None if memory is None or matrix < 2**26 else round(1 + memory / matrix, 2)


def _solved(problem: Problem, case: Case) -> Solution:
    return solve(problem, gap=GAP, time_limit=case.time_limit, additive=case.additive, timer=time.process_time)


def measure_root(solver: str, name: str, problem: Problem, seconds: float) -> Iterator[Row]:
    """Bound one problem at its root and yield the row.

    Args:
        solver: One of `RELAXATIONS`.
        name: Name of the problem.
        problem: It.
        seconds: Time limit.
    """
    value = solve(problem, gap=GAP, time_limit=20, timer=time.process_time).value
    form = difference_form(problem, np.ones(len(problem.group), dtype=bool))
    wall, processor = time.perf_counter(), time.process_time()
    bound = RELAXATIONS[solver].bound(form, value, seconds)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    yield {
        "instance": name,
        "solver": solver,
        "groups": problem.group_count,
        "candidates": len(problem.group),
        "value": value,
        "gap": relative_gap(value, bound),
        "wall_seconds": round(wall, 3),
        "processor_seconds": round(processor, 3),
    }


def measure_peer(solver: str, name: str, problem: Problem, seconds: float) -> Iterator[Row]:
    """Solve one problem by another solver and yield its row.

    It runs in a process of its own: OR-Tools and highspy bundle the same library and cannot share one.
    """
    wall = time.perf_counter()
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        value, bound, processor = process.submit(_solved_by_peer, solver, problem, seconds).result()
    found = np.isfinite(value)
    yield {
        "instance": name,
        "solver": solver,
        "groups": problem.group_count,
        "candidates": len(problem.group),
        "value": value if found else None,
        "gap": relative_gap(value, bound) if found else None,
        "wall_seconds": round(time.perf_counter() - wall, 3),
        "processor_seconds": round(processor, 3),
    }


def _solved_by_peer(solver: str, problem: Problem, seconds: float) -> tuple[float, float, float]:
    value, bound = PEERS[solver].solve(problem, seconds)
    return value, bound, time.process_time()


def measure_frontier(budgets: int, time_limit: float) -> Iterator[Row]:
    """Prove a sweep of budgets on ResNet-20's Fisher model."""
    taylor = resnet20_taylor()
    wall, processor = time.perf_counter(), time.process_time()
    swept = frontier(taylor, average_bits=np.linspace(2.1, 7.9, budgets).tolist(), time_limit=time_limit, gap=GAP)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    yield {
        "instance": frontier_name(budgets),
        "solver": "lightning_mpq",
        "groups": len(taylor.groups),
        "candidates": len(taylor.candidates),
        "gap": max(allocation.gap for allocation in [*swept.points, *swept.dominated]),
        "wall_seconds": round(wall, 3),
        "processor_seconds": round(processor, 3),
        "points": len(swept.points),
    }


def relative_gap(value: float, bound: float) -> float | None:
    """Return (value - bound) / |value|, None if there is no bound."""
    gap = (value - bound) / abs(value) if value else 0.0
    return float(gap) if np.isfinite(gap) else None
