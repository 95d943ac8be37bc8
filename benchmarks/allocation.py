"""How far, and how fast, allocations are proved; run ``python -m benchmarks.allocation --help``."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from lightning_mpq.allocation.solver.engine import solve
from lightning_mpq.allocation.solver.problem import Problem

from .allocation_instances import FAMILIES, resnet20, synthetic
from .allocation_peers import cp_sat, scip
from .common import PACKAGES, Demand, write_results

GAP = 1e-3
CURVATURES = ("hessian", "gauss_newton", "fisher")
BUDGETS = (2.25, 2.5, 3.0, 4.0)
PEERS: dict[str, tuple[str, Callable[[Problem, float], tuple[float, float]]]] = {
    "scip": ("pyscipopt", scip),
    "cp_sat": ("ortools", cp_sat),
}
Row = dict[str, Any]


def relative_gap(value: float, bound: float) -> float | None:
    """Return (value - bound) / |value|, None if there is no bound."""
    gap = (value - bound) / abs(value) if value else 0.0
    return float(gap) if np.isfinite(gap) else None


def measure(name: str, problem: Problem, time_limit: float, additive: bool = False) -> Row:
    """Solve one problem and return its row: value, proved gap, wall and processor seconds, the additive excess."""
    wall, processor = time.perf_counter(), time.process_time()
    solution = solve(problem, gap=GAP, time_limit=time_limit, additive=additive, timer=time.process_time)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    row: Row = {
        "instance": name,
        "solver": "lightning_mpq",
        "groups": problem.group_count,
        "candidates": len(problem.group),
        "value": solution.value,
        "gap": relative_gap(solution.value, solution.bound),
        "wall_seconds": round(wall, 3),
        "processor_seconds": round(processor, 3),
        "nodes": solution.nodes,
        "status": solution.status.name,
        "steps": {step: round(seconds, 3) for step, seconds in solution.seconds.items()},
    }
    if not additive:
        plan = solve(problem, gap=GAP, time_limit=10, additive=True)
        row["additive_excess"] = (problem.value(plan.selection) - solution.value) / abs(solution.value)
    return row


def measure_peer(solver: str, name: str, problem: Problem, seconds: float) -> Row:
    """Solve one problem by another solver and return its row.

    It runs in a process of its own: OR-Tools and highspy bundle the same library and cannot share one.
    """
    wall = time.perf_counter()
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        value, bound = process.submit(PEERS[solver][1], problem, seconds).result()
    found = np.isfinite(value)
    return {
        "instance": name,
        "solver": solver,
        "groups": problem.group_count,
        "candidates": len(problem.group),
        "value": value if found else None,
        "gap": relative_gap(value, bound) if found else None,
        "wall_seconds": round(time.perf_counter() - wall, 3),
    }


def measure_frontier(points: int, time_limit: float) -> Row:
    """Prove a sweep of budgets on ResNet-20's Fisher model, as `frontier` does it."""
    import torch

    from lightning_mpq.allocation import frontier
    from lightning_mpq.curvature.taylor_model import TaylorModel
    from lightning_mpq.groups.candidates import make_candidates
    from lightning_mpq.groups.groups import LayerGroup

    from .allocation_instances import DATA

    data = np.load(DATA)
    groups = tuple(
        LayerGroup(f"layer{i:02d}", (f"layer{i:02d}",), ((1, int(w)),)) for i, w in enumerate(data["weights"])
    )
    candidates = make_candidates(groups, bits=[int(b) for b in data["bits"]])
    matrix = torch.tensor(data["fisher"], dtype=torch.float64)
    zero = torch.zeros(len(candidates))
    taylor = TaylorModel(groups, candidates, zero, (matrix + matrix.T) / 2, "fisher", "divergence", 4096)
    wall, processor = time.perf_counter(), time.process_time()
    swept = frontier(taylor, average_bits=np.linspace(2.1, 7.9, points).tolist(), time_limit=time_limit, gap=GAP)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    plans = [*swept.points, *swept.dominated]
    return {
        "instance": f"resnet20 fisher frontier of {points} budgets",
        "solver": "lightning_mpq",
        "groups": 22,
        "candidates": 154,
        "gap": max(plan.gap for plan in plans),
        "wall_seconds": round(wall, 3),
        "processor_seconds": round(processor, 3),
        "points": len(swept.points),
    }


def run(quick: bool, peer_seconds: float, report: Callable[[Row], None]) -> tuple[list[Row], list[Demand], list[str]]:
    """Measure everything; return rows, demands and what was skipped."""
    rows: list[Row] = []
    demands: list[Demand] = []

    def add(row: Row, most_gap: float | None = None, most_seconds: float = np.inf) -> None:
        rows.append(row)
        report(row)
        if most_gap is None:
            return
        gap, seconds = row["gap"], row["processor_seconds"]
        met = gap is not None and gap <= most_gap * (1 + 1e-9) and seconds <= most_seconds
        said = f"gap <= {most_gap:.1%} within {most_seconds:g} s on one core"
        measured = f"{gap:.3%} in {seconds:.2f} s" if gap is not None else "no bound"
        demands.append(Demand(row["instance"], said, measured, met))

    for curvature in CURVATURES:
        for bits in BUDGETS:
            add(measure(f"resnet20 {curvature} at {bits:g} bits", resnet20(curvature, bits), 60), 1e-3, 5)
    for family in FAMILIES:
        problem = synthetic(family, 54, 7, 3.0)
        add(measure(f"{family} 54 x 7 at 3 bits", problem, 90), 1e-2 if family == "indef" else 1e-3, 30)
    add(measure("mid 224 x 7 at 3 bits, additive", synthetic("mid", 224, 7, 3.0), 30, additive=True), 1e-3, 1)
    add(measure_frontier(30, 60), 1e-3, 60)
    if not quick:
        add(measure("mid 210 x 7 at 3 bits", synthetic("mid", 210, 7, 3.0), 55), 5e-2, 60)
    skipped = [] if not quick else ["210 x 7 (--quick)"]
    for solver, (package, _) in PEERS.items():
        if find_spec(package) is None:
            skipped.append(f"{solver}: {package} is not installed")
            continue
        compared = {"resnet20 fisher at 3 bits": resnet20("fisher", 3.0)}
        compared["mid 54 x 7 at 3 bits"] = synthetic("mid", 54, 7, 3.0)
        try:
            for name, problem in compared.items():
                add(measure_peer(solver, name, problem, peer_seconds))
        except ImportError as error:
            skipped.append(f"{solver}: {package} cannot be imported ({error})")
    return rows, demands, skipped


def show(rows: list[Row], demands: list[Demand]) -> None:
    """Print the rows and what was demanded."""
    table = Table(title="Allocation: proved gap and time")
    for column in ("instance", "solver", "value", "gap", "wall s", "cpu s", "nodes", "additive plan"):
        table.add_column(column, justify="left" if column in ("instance", "solver") else "right")
    for row in rows:
        value, gap, excess = row.get("value"), row.get("gap"), row.get("additive_excess")
        table.add_row(
            row["instance"],
            row["solver"],
            "" if value is None else f"{value:.5g}",
            "no bound" if gap is None else f"{gap:.3%}",
            f"{row['wall_seconds']:.2f}",
            f"{row['processor_seconds']:.2f}" if "processor_seconds" in row else "",
            str(row.get("nodes", "")),
            "" if excess is None else f"{excess:+.1%}",
        )
    console = Console(width=120)
    console.print(table)
    for demand in demands:
        console.print(f"{'met   ' if demand.met else 'MISSED'} {demand.name}: {demand.measured} ({demand.demanded})")


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="leave out the largest instance (a minute)")
    parser.add_argument("--peer-seconds", type=float, default=30.0, help="time limit of other solvers")
    parser.add_argument("--output", type=Path, default=None, help="JSON file; benchmarks/results/allocation.json")
    arguments = parser.parse_args()
    console = Console(stderr=True)
    rows, demands, skipped = run(
        arguments.quick, arguments.peer_seconds, lambda row: console.print(f"{row['instance']} ({row['solver']})")
    )
    show(rows, demands)
    settings = {
        "gap": GAP,
        "seed": 0,
        "threads": "numpy and scipy as the environment sets them; python-mip on one",
        "seconds": "limits and demands count processor seconds, since other work may share the machine",
        "peer_seconds": arguments.peer_seconds,
        "skipped": skipped,
    }
    path = write_results(
        "allocation",
        settings=settings,
        results=rows,
        demands=demands,
        output=arguments.output,
        packages=(*PACKAGES, "pyscipopt", "ortools"),
    )
    console.print(f"written to {path}")


if __name__ == "__main__":
    main()
