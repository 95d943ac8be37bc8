"""The time of a profile over that of a forward pass."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from lightning_mpq import find_groups, profile

from ...problems.profiling_cases import profiling_case, task_loss
from ...tools.results import Row
from ...tools.targets import Target, at_most, between

ESTIMATORS = ("fisher", "secant", "gauss_newton", "hessian")


def measure(name: str, batches: int, widths: Sequence[int], estimators: Sequence[str]) -> Iterator[Row]:
    """Yield one row for each estimator on one network: fisher on several batches, the others, exact on each, on one."""
    case = profiling_case(name)
    layers, candidates = len(find_groups(case.model)), case.candidates(widths)

    def forward() -> float:
        with torch.no_grad():
            return min(cpu_seconds(lambda: case.model(case.inputs)) for _ in range(3))

    for estimator in estimators:
        data = case.batches(batches if estimator == "fisher" else 1)

        def work(data: list[Any] = data, estimator: str = estimator) -> None:
            profile(
                case.model,
                data,
                candidates=candidates,
                estimator=estimator,
                likelihood=case.likelihood,
                statistics="frozen",
                loss_fn=task_loss,
            )

        before = forward()
        spent = cpu_seconds(work)
        unit = (before + forward()) / 2  # the clock of a shared machine drifts
        forwards = spent / unit / len(data)
        yield {
            "network": name,
            "layers": layers,
            "candidates": len(candidates),
            "estimator": estimator,
            "samples": len(data) * len(case.inputs),
            "forward_seconds": unit,
            "forwards": forwards,
            "forwards_per_candidate": None if estimator == "fisher" else forwards / len(candidates),
            "pairwise_forwards": len(candidates) ** 2 // 2,  # of CLADO, which measures the loss of every pair
        }


def cpu_seconds(work: Callable[[], Any]) -> float:
    """Return the CPU time that a call takes."""
    start = time.process_time()
    work()
    return time.process_time() - start


def targets(rows: Sequence[Row]) -> list[Target]:
    """Return the targets that these rows can answer."""
    cost = {(row["network"], row["estimator"]): row for row in rows}
    found = []
    for (name, estimator), row in cost.items():
        if estimator == "fisher":
            widths = row["candidates"] // row["layers"]
            value = round(row["forwards"], 2)
            found.append(at_most(f"fisher, {name}, {widths} widths, forward passes", value, 10))
        elif estimator in ("gauss_newton", "hessian"):
            bound = {"gauss_newton": 1.2, "hessian": 6.0}[estimator]
            value = round(row["forwards_per_candidate"], 2)
            found.append(at_most(f"{estimator}, {name}, forward passes / K", value, bound))
    if {("resnet20", "fisher"), ("resnet110", "fisher")} <= set(cost):
        ratio = round(cost["resnet110", "fisher"]["forwards"] / cost["resnet20", "fisher"]["forwards"], 3)
        found.append(between("fisher, forward passes at 110 / at 20 layers", ratio, 0.75, 1.25))
    return found
