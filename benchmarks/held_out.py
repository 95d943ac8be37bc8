"""What pairs of layers are worth on images that no plan has seen, and how far plans depend on the calibration images.

Five draws of 256, 1,024 and 4,096 training images each give a Taylor model; its full plan (with and without shrinkage)
and its additive plan are rounded and repaired on the same images and measured on held-out ones.

    python -m benchmarks.held_out --root DIR
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import combinations, product
from statistics import stdev
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from lightning_mpq.allocation import Budget, allocate
from lightning_mpq.curvature import shrink
from lightning_mpq.network.likelihood import Categorical
from lightning_mpq.options import CandidateOptions, CurvatureOptions
from lightning_mpq.pipeline.pipeline import Pipeline
from lightning_mpq.pipeline.quantize import temporarily_packed
from lightning_mpq.policy import BitPolicy
from lightning_mpq.repair.batchnorm import (
    BatchNormStatistics,
    measure_batchnorm,
    reestimate_batchnorm,
)

from .accuracy import mean, outputs
from .common import Demand, write_results
from .networks import Images, calibration, data_module, held_out, trained
from .parts import LEFT_OUT, parser_of, part, settings_of

CASES = (
    ("resnet20", "nearest", "frozen"),
    ("resnet20", "nearest", "reestimated"),
    ("resnet20", "second_order", "reestimated"),
    ("transformer", "nearest", "frozen"),
    ("transformer", "second_order", "frozen"),
)
KEYS = ("network", "rounding", "statistics", "samples", "budget")


def main() -> None:
    """Parse the command line, measure, print and write."""
    parser = parser_of("held_out", __doc__)
    parser.add_argument("--cases", type=int, nargs="+", choices=range(len(CASES)), default=range(len(CASES)))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="draws of calibration images")
    parser.add_argument("--samples", type=int, nargs="+", default=[256, 1024, 4096])
    parser.add_argument("--budgets", type=float, nargs="+", default=[2.25, 2.5, 3.0, 4.0])
    parser.add_argument("--held-out", type=int, default=2048, help="images that plans are measured on")
    arguments = parser.parse_args()
    plans = [
        row
        for case, samples, seed in product(arguments.cases, arguments.samples, arguments.seeds)
        for row in part(
            "held_out",
            "-".join((*CASES[case], str(samples), f"seed{seed}")),
            partial(measure, *CASES[case], samples, seed, arguments),
            only_known=arguments.known,
        )
    ]
    rows = summaries(plans)
    print_table(rows)
    path = write_results(
        "held_out",
        settings={
            **settings_of(arguments, "cases"),
            "cases": [list(CASES[case]) for case in arguments.cases],
            "skipped": LEFT_OUT,
            "plans_measured": plans,
        },
        results=rows,
        demands=demands(rows),
        output=arguments.output,
    )
    print(f"written to {path}")


def measure(
    network: str, rounding: str, statistics: str, samples: int, seed: int, arguments: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Yield one row a budget: held-out divergence of each plan, and how the full and additive plans differ."""
    model = trained(network, 0, arguments.root, arguments.epochs).network
    data = data_module(arguments.root, 0)
    batches, unseen = calibration(data, seed, samples), held_out(data, 0, arguments.held_out)
    pipeline = Pipeline(
        Budget(average_bits=max(arguments.budgets)),
        candidates=CandidateOptions(rounding=rounding),  # type: ignore[arg-type,unused-ignore]
        curvature=CurvatureOptions(
            likelihood=Categorical(),
            statistics=statistics,  # type: ignore[arg-type,unused-ignore]
            shrink=False,
            seed=seed,
        ),
    )
    _, rounded, plain = pipeline.measure(model, batches)
    shrunk = shrink(plain)
    reference, _ = outputs(model, unseen)
    before = measure_batchnorm(model, batches) if statistics == "reestimated" else None
    known: dict[str, Tensor] = {}
    for budget in arguments.budgets:
        full, unshrunk = (allocate(taylor, Budget(average_bits=budget)) for taylor in (shrunk, plain))
        plans = {"full": full.policy, "unshrunk": unshrunk.policy, "additive": full.additive_policy or full.policy}
        losses = {}
        for name, policy in plans.items():
            key = policy.to_json()
            if key not in known:
                codes = {} if rounded is None else rounded.of_policy(policy)
                known[key] = _divergences(model, policy, codes, batches, before, unseen, reference)
            losses[name] = known[key]
        yield {
            "network": network,
            "rounding": rounding,
            "statistics": statistics,
            "samples": samples,
            "seed": seed,
            "budget": budget,
            "divergence": {name: float(loss.mean()) for name, loss in losses.items()},
            "predicted": {name: shrunk.predict(policy).value for name, policy in plans.items()},
            "difference_error": {
                name: float((losses[name] - losses["additive"]).std() / len(losses[name]) ** 0.5)
                for name in ("full", "unshrunk")
            },
            "bits": {name: list(policy.bits().values()) for name, policy in plans.items()},
        }


def _divergences(
    model: nn.Module,
    policy: BitPolicy,
    codes: Any,
    batches: Images,
    before: Mapping[str, BatchNormStatistics] | None,
    unseen: Images,
    reference: Tensor,
) -> Tensor:
    """Return KL(float || quantized) of each unseen image, [images], in nats; ``before`` asks for repair."""
    with temporarily_packed(model, policy, codes):
        if before is not None:
            reestimate_batchnorm(model, batches, before=before)
        found, _ = outputs(model, unseen)
    return (reference.exp() * (reference - found)).sum(1)


def summaries(plans: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return means over calibration seeds, what the full plan gains, and how much plans change from seed to seed."""
    rows = []
    for key in dict.fromkeys(tuple(plan[name] for name in KEYS) for plan in plans):
        mine = [plan for plan in plans if tuple(plan[name] for name in KEYS) == key]
        row: dict[str, Any] = dict(zip(KEYS, key, strict=True))
        additive = [plan["divergence"]["additive"] for plan in mine]
        row["divergence_additive"] = mean(additive)
        for name in ("full", "unshrunk"):
            loss = [plan["divergence"][name] for plan in mine]
            differences = [a - b for a, b in zip(loss, additive, strict=True)]
            # Seeds differ in calibration images and share the held-out ones, so both kinds of chance add up.
            chance = (_spread(differences) / len(mine) ** 0.5) ** 2
            chance += mean(plan["difference_error"][name] for plan in mine) ** 2
            row |= {
                f"divergence_{name}": mean(loss),
                f"{name}_over_additive": mean(loss) / mean(additive),
                f"{name}_minus_additive": mean(differences),
                f"{name}_difference_error": chance**0.5,
            }
        for name in ("full", "additive"):
            loss = [plan["divergence"][name] for plan in mine]
            changes = [
                sum(a != b for a, b in zip(one["bits"][name], two["bits"][name], strict=True))
                for one, two in combinations(mine, 2)
            ]
            row[f"groups_changed_{name}"] = mean(changes) if changes else 0.0
            row[f"relative_spread_{name}"] = _spread(loss) / mean(loss)
        row["groups"] = len(mine[0]["bits"]["full"])
        rows.append(row)
    return rows


def _spread(values: Sequence[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0


def demands(rows: Sequence[Mapping[str, Any]]) -> list[Demand]:
    """Return: nowhere worse than additive beyond two standard errors, and better where interactions are real."""
    found = []
    worst = max(rows, key=lambda row: row["full_minus_additive"] / max(row["full_difference_error"], 1e-12))
    excess = worst["full_minus_additive"] / max(worst["full_difference_error"], 1e-12)
    where = ", ".join(f"{worst[key]}" for key in KEYS)
    name = f"full plan above additive plan in standard errors, at its worst ({where}) of {len(rows)}"
    found.append(Demand(name, "<= 2", excess, excess <= 2))
    for row in rows:
        if row["statistics"] == "frozen" and row["network"] == "resnet20" and row["budget"] == 2.5:
            ratio = row["full_over_additive"]
            name = f"ResNet-20, frozen, 2.5 bits, {row['samples']} samples: full over additive plan's loss"
            found.append(Demand(name, "<= 0.75", ratio, ratio <= 0.75))
    return found


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print one line a case."""
    table = Table(title="Held-out divergence, means over calibration draws")
    for title in (*KEYS, "additive", "full", "full / additive", "unshrunk / additive", "groups changed", "spread"):
        table.add_column(title)
    for row in rows:
        error = row["full_difference_error"] / row["divergence_additive"]
        table.add_row(
            *(str(row[key]) for key in KEYS),
            f"{row['divergence_additive']:.5f}",
            f"{row['divergence_full']:.5f}",
            f"{row['full_over_additive']:.2f} +- {error:.2f}",
            f"{row['unshrunk_over_additive']:.2f}",
            f"{row['groups_changed_full']:.1f} of {row['groups']}",
            f"{100 * row['relative_spread_full']:.0f} %",
        )
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
