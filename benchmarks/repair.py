"""What each repair gains on images that no choice has seen, and what scales for blocks of columns gain as candidates.

A plan is packed with codes by float inputs or in sequence, and measured as it is and after biases (networks without
BatchNorm) or BatchNorm statistics are put right. Granularities compete as candidates under the same budgets, packed
and repaired as the callback does it. Parts are kept; the last command collects those that are there:

    python -m benchmarks.repair --root DIR --cases 0 1
    python -m benchmarks.repair --root DIR --known
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import nn

from lightning_mpq.allocation import Budget, allocate
from lightning_mpq.network.likelihood import Categorical
from lightning_mpq.options import CandidateOptions, CurvatureOptions, RepairOptions
from lightning_mpq.pipeline.comparison import uniform_policy
from lightning_mpq.pipeline.pipeline import Pipeline
from lightning_mpq.pipeline.quantize import temporarily_packed
from lightning_mpq.repair.repair import Repair, final_codes

from .accuracy import compare, mean, outputs
from .common import Demand, write_results
from .networks import calibration, data_module, held_out, test_split, trained
from .networks.folded import folded
from .parts import LEFT_OUT, parser_of, part, settings_of

REPAIRS = (("transformer", 0), ("mobilenet", 0), ("mobilenet", 1), ("resnet20 folded", 0))
BUDGETS = {"mobilenet": (2.6, 3.0)}  # it cannot be stored at 2.25 bits: nine weights a scale
GRANULARITIES = (("transformer", 0), ("resnet20", 0))
OFFERED: dict[str, tuple[str | int, ...]] = {"channel": ("channel",), "channel and blocks": ("channel", 128, 64, 32)}
CASES = (*(("repair", *case) for case in REPAIRS), *(("granularity", *case) for case in GRANULARITIES))


def main() -> None:
    """Parse the command line, measure, print and write."""
    parser = parser_of("repair", __doc__)
    parser.add_argument("--cases", type=int, nargs="+", choices=range(len(CASES)), default=range(len(CASES)))
    parser.add_argument("--calibration", type=int, default=512)
    parser.add_argument("--held-out", type=int, default=2048)
    arguments = parser.parse_args()
    ways = {"repair": repairs, "granularity": granularities}
    rows = [
        {"compared": compared, "network": network, "seed": seed, **row}
        for compared, network, seed in (CASES[case] for case in arguments.cases)
        for row in part(
            "repair",
            f"{compared}-{network.replace(' ', '-')}-seed{seed}-{arguments.calibration}",
            partial(ways[compared], network, seed, arguments),
            only_known=arguments.known,
        )
    ]
    print_table(rows)
    path = write_results(
        "repair",
        settings={
            **settings_of(arguments, "cases"),
            "cases": [list(CASES[case]) for case in arguments.cases],
            "skipped": LEFT_OUT,
        },
        results=rows,
        demands=demands(rows),
        output=arguments.output,
    )
    print(f"written to {path}")


def repairs(name: str, seed: int, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield one row for each budget, way of rounding and state of repair; test images only for the middle budget."""
    model, batches, unseen, test = _setting(name, seed, arguments)
    pipeline = _pipeline(seed, ("channel",), range(2, 9))
    groups, rounded, taylor = pipeline.measure(model, batches)
    budgets = BUDGETS.get(name, (2.25, 3.0))
    plans = {f"{budget:g} bits": allocate(taylor, Budget(average_bits=budget)).policy for budget in budgets}
    plans = {"every layer at 2": uniform_policy(taylor, 2), **plans}
    references = {"held_out": outputs(model, unseen)[0], "test": outputs(model, test)[0]}
    layers = [layer for group in groups for layer in group.layers]
    repair = Repair(model, batches, layers, RepairOptions())
    for plan, policy in plans.items():
        for sequential in (False, True):
            codes = final_codes(model, batches, policy, RepairOptions(sequential=sequential), rounded)
            with temporarily_packed(model, policy, codes):
                done: tuple[str, ...] = ()
                for step in chain([None], repair.steps()):
                    done += () if step is None else (step,)
                    row: dict[str, Any] = {"plan": plan, "sequential": sequential, "repaired": list(done)}
                    row["held_out"] = compare(model, unseen, references["held_out"])
                    if plan == f"{budgets[0]:g} bits":
                        row["test"] = compare(model, test, references["test"])
                    yield row


def granularities(name: str, seed: int, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield one row for each set of granularities and budget; the plan is packed and repaired as by default."""
    model, batches, unseen, _ = _setting(name, seed, arguments)
    reference, _ = outputs(model, unseen)
    for offered, granularity in OFFERED.items():
        groups, rounded, taylor = _pipeline(seed, granularity, (2, 3, 4, 5)).measure(model, batches)
        layers = [layer for group in groups for layer in group.layers]
        repair = Repair(model, batches, layers, RepairOptions())
        for budget in (2.25, 2.5, 3.0):
            allocation = allocate(taylor, Budget(average_bits=budget))
            policy = allocation.policy
            with temporarily_packed(model, policy, final_codes(model, batches, policy, RepairOptions(), rounded)):
                repair.apply()
                yield {
                    "offered": offered,
                    "budget": budget,
                    "bits": allocation.costs["average_bits"],
                    "groups": len(groups),
                    "groups_in_blocks": sum(isinstance(scheme.granularity, int) for scheme in policy.values()),
                    "predicted": allocation.predicted_loss,
                    "held_out": compare(model, unseen, reference),
                }


def _setting(name: str, seed: int, arguments: argparse.Namespace) -> tuple[nn.Module, Any, Any, Any]:
    """Return the network, its calibration images, held-out images and test images."""
    kind, _, form = name.partition(" ")
    model = trained(kind, seed, arguments.root, arguments.epochs).network
    data = data_module(arguments.root, seed)
    unseen = held_out(data, seed, arguments.held_out)
    return (
        folded(model) if form == "folded" else model,
        calibration(data, seed, arguments.calibration),
        unseen,
        test_split(data),
    )


def _pipeline(seed: int, granularity: Sequence[str | int], bits: Sequence[int]) -> Pipeline:
    return Pipeline(
        Budget(average_bits=4.0),
        candidates=CandidateOptions(bits=tuple(bits), granularities=granularity),
        curvature=CurvatureOptions(likelihood=Categorical(), seed=seed),
    )


def demands(rows: Sequence[Mapping[str, Any]]) -> list[Demand]:
    """Return: no repair loses by more than noise, alone or on top of another, nor do more candidates."""
    found = []
    for network, plan in dict.fromkeys((row["network"], row["plan"]) for row in rows if row["compared"] == "repair"):
        mine = [row for row in rows if (row["network"], row.get("plan")) == (network, plan)]
        none = mean(divergence(row) for row in mine if not row["sequential"] and not row["repaired"])
        rounded = mean(divergence(row) for row in mine if row["sequential"] and not row["repaired"])
        every = mean(divergence(row) for row in mine if row["sequential"] and row["repaired"])
        name = f"{network}, {plan}: held-out divergence in sequence and repaired over"
        found.append(Demand(f"{name} neither", "<= 1", every / none, every <= none))
        found.append(Demand(f"{name} in sequence alone", "<= 1.05", every / rounded, every <= 1.05 * rounded))
    for network, budget in dict.fromkeys((r["network"], r["budget"]) for r in rows if r["compared"] == "granularity"):
        mine = [row for row in rows if (row["network"], row.get("budget")) == (network, budget)]
        one, several = (mean(divergence(row) for row in mine if row["offered"] == offered) for offered in OFFERED)
        name = f"{network}, {budget:g} bits: held-out divergence with blocks as candidates over channels alone"
        found.append(Demand(name, "<= 1.1", several / one, several <= 1.1 * one))
    return found


def divergence(row: Mapping[str, Any]) -> float:
    """Return the divergence on held-out images, nats per image."""
    return float(row["held_out"]["divergence"])


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print one line a row."""
    table = Table(title="Held-out images")
    for title in ("compared", "network", "seed", "plan", "rounding or candidates", "repaired", "divergence", "lost"):
        table.add_column(title)
    for row in rows:
        repaired = " + ".join(row["repaired"]) or "-" if "repaired" in row else f"{row['groups_in_blocks']} in blocks"
        how = row.get("offered") or ("in sequence" if row["sequential"] else "by float inputs")
        table.add_row(
            row["compared"],
            row["network"],
            str(row["seed"]),
            row.get("plan") or f"{row['budget']:g} bits",
            how,
            repaired,
            f"{divergence(row):.5f}",
            f"{row['held_out']['points_lost']:+.2f}",
        )
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
