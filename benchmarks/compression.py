"""Accuracy against bits: rounding, allocation and repair, each without and with, and no fine-tuning anywhere.

Two networks are trained on Fashion-MNIST, once for each seed, and quantized with 1,024 unaugmented training images;
the 10,000 test images only report. Parts may run one by one; the last command collects what is there:

    python -m benchmarks.compression --root DIR --networks resnet20 --seeds 0
    python -m benchmarks.compression --root DIR
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from rich.console import Console
from rich.table import Table

from lightning_mpq.allocation import Budget, allocate
from lightning_mpq.curvature import TaylorModel
from lightning_mpq.errors import InfeasibleBudgetError
from lightning_mpq.modules import stored_bytes
from lightning_mpq.network.likelihood import Categorical
from lightning_mpq.options import CandidateOptions, CurvatureOptions
from lightning_mpq.pipeline.comparison import uniform_policy
from lightning_mpq.pipeline.pipeline import Pipeline
from lightning_mpq.pipeline.quantize import temporarily_packed
from lightning_mpq.policy import BitPolicy
from lightning_mpq.repair.batchnorm import measure_batchnorm, reestimate_batchnorm
from lightning_mpq.rounding.sequential import round_sequentially

from .accuracy import compare, mean, outputs
from .common import Demand, write_results
from .networks import CALIBRATION, calibration, data_module, test_split, trained
from .parts import LEFT_OUT, parser_of, part

NETWORKS = ("resnet20", "mobilenet")
BUDGETS = (2.0, 2.25, 2.5, 3.0, 4.0)
DEMANDED_LOSS = {2.25: 0.5, 2.5: 0.3, 3.0: 0.15}


def main() -> None:
    """Parse the command line, measure, print and write."""
    parser = parser_of("compression", __doc__)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--budgets", type=float, nargs="+", default=BUDGETS, help="average bits, scales counted")
    arguments = parser.parse_args()
    rows = [
        {"network": name, "seed": seed, **row}
        for name in arguments.networks
        for seed in arguments.seeds
        for row in part(
            "compression",
            f"{name}-seed{seed}-epochs{arguments.epochs}",
            partial(compress, name, seed, arguments.root, arguments.epochs, arguments.budgets),
            only_known=arguments.known,
        )
    ]
    print_table(rows)
    path = write_results(
        "compression",
        settings={
            "seeds": arguments.seeds,
            "epochs": arguments.epochs,
            "calibration_images": CALIBRATION,
            "budgets": list(arguments.budgets),
            "skipped": sorted({row["skipped"] for row in rows if "skipped" in row}) + LEFT_OUT,
        },
        results=[row for row in rows if "skipped" not in row],
        demands=demands(rows),
        output=arguments.output,
    )
    print(f"written to {path}")


def compress(name: str, seed: int, root: str, epochs: int, budgets: Sequence[float]) -> Iterator[dict[str, Any]]:
    """Yield one row for each way of rounding, plan, budget and repair, the float model first.

    Plans of a model that will be repaired come from a Taylor model of the repaired loss, others from one of the
    loss with frozen statistics. "sequential" is the full plan of second-order rounding, rounded once more with each
    layer's inputs as the quantized layers before it make them.
    """
    model = trained(name, seed, root, epochs).network
    data = data_module(root, seed)
    batches, test = calibration(data, seed), test_split(data)
    reference, _ = outputs(model, test)
    total = stored_bytes(model).total
    before = measure_batchnorm(model, batches)
    yield {"rounding": "float", "bits": 32.0, "stored_bytes": total, **compare(model, test, reference)}
    for rounding in ("nearest", "second_order"):
        for repair in (False, True):
            pipeline = Pipeline(
                Budget(average_bits=max(budgets)),
                candidates=CandidateOptions(rounding=rounding),
                curvature=CurvatureOptions(
                    likelihood=Categorical(), statistics="reestimated" if repair else "frozen", seed=seed
                ),
            )
            groups, rounded, taylor = pipeline.measure(model, batches)
            weights = sum(group.weight_count for group in groups)
            for budget in budgets:
                plans = dict(_plans(taylor, budget))
                if "full" not in plans:
                    least = 8 * uniform_cost(taylor, 2) / weights
                    yield {"skipped": f"{name}: no plan stores {budget:g} bits a weight; all at 2 bits: {least:.3f}"}
                for plan, policy in plans.items():
                    codes = {rounding: {} if rounded is None else rounded.of_policy(policy)}
                    start = time.perf_counter()
                    if rounding == "second_order" and plan == "full":
                        codes["sequential"] = round_sequentially(
                            model, batches, policy, rounded=codes[rounding], reestimated=repair
                        )
                    seconds = time.perf_counter() - start
                    for way, rows in codes.items():
                        with temporarily_packed(model, policy, rows):
                            if repair:
                                reestimate_batchnorm(model, batches, before=before)
                            stored = stored_bytes(model)
                            yield {
                                "rounding": way,
                                "plan": plan,
                                "repair": repair,
                                "budget": budget,
                                "bits": 8 * stored.packed / weights,
                                "stored_bytes": stored.total,
                                "predicted": taylor.predict(policy).value,
                                **({"sequential_seconds": seconds} if way == "sequential" else {}),
                                **compare(model, test, reference),
                            }


def uniform_cost(taylor: TaylorModel, bits: int) -> float:
    """Return the bytes of all quantized weights at one width, scales included."""
    return sum(taylor.candidates[index].stored_bits for index in taylor.indices(uniform_policy(taylor, bits))) / 8


def _plans(taylor: TaylorModel, budget: float) -> Iterator[tuple[str, BitPolicy]]:
    """Yield the plans to compare under a budget; uniform widths stand beside the whole number of bits."""
    if budget == int(budget):
        yield "uniform", uniform_policy(taylor, budget)
    try:
        allocation = allocate(taylor, Budget(average_bits=budget))
    except InfeasibleBudgetError:
        return
    yield "full", allocation.policy
    if allocation.additive_policy is not None:
        yield "additive", allocation.additive_policy


def chosen(rows: Sequence[Mapping[str, Any]], network: str, budget: float) -> list[Mapping[str, Any]]:
    """Return the rows of what the callback does by default, one for each seed."""
    wanted = {"network": network, "rounding": "sequential", "plan": "full", "repair": True, "budget": budget}
    return [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]


def demands(rows: Sequence[Mapping[str, Any]]) -> list[Demand]:
    """Return the demanded figures of ResNet-20, means over seeds."""
    found = []
    for budget, limit in DEMANDED_LOSS.items():
        if mine := chosen(rows, "resnet20", budget):
            lost = mean(row["points_lost"] for row in mine)
            name = f"ResNet-20: points below float at {budget} bits, mean of {len(mine)} seeds"
            found.append(Demand(name, f"<= {limit}", lost, lost <= limit))
    if mine := chosen(rows, "resnet20", 4.0):
        least = min(row["p_value"] if row["points_lost"] > 0 else 1.0 for row in mine)
        bound = 0.05 / len(mine)
        name = "ResNet-20: least p-value of a loss at 4 bits (McNemar)"
        found.append(Demand(name, f">= {bound:.3f} (0.05 over the seeds)", least, least >= bound))
    return found


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print means over seeds."""
    table = Table(title="Test images, mean over seeds")
    for title in ("network", "rounding", "plan", "repair", "budget"):
        table.add_column(title)
    for title in ("bits/weight", "accuracy", "points lost", "divergence"):
        table.add_column(title, justify="right")
    cells: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        if "skipped" not in row:
            key = tuple(str(row.get(name, "")) for name in ("network", "rounding", "plan", "repair", "budget"))
            cells.setdefault(key, []).append(row)
    for key, found in cells.items():
        bits, accuracy, lost, divergence = (
            mean(row[name] for row in found) for name in ("bits", "accuracy", "points_lost", "divergence")
        )
        table.add_row(*key, f"{bits:.3f}", f"{accuracy:.2f} %", f"{lost:+.2f}", f"{divergence:.5f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
