"""How well each estimator predicts the loss of random plans, beside its diagonal and the scores of other tools.

The Taylor models are made from 512 unaugmented training images; the loss of 250 random plans of 2 to 8 bits is measured
on images that were held out of training. The divergence from the float model is predicted and measured (for
the hessian, the change of the cross entropy), without repair and with re-estimated BatchNorm statistics.

    python -m benchmarks.fidelity --root DIR
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from random import Random
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn.functional import cross_entropy

from lightning_mpq.curvature import TaylorModel, profile, shrink
from lightning_mpq.curvature.shrinkage import between_groups
from lightning_mpq.groups.candidates import make_candidates
from lightning_mpq.groups.groups import find_groups
from lightning_mpq.network.likelihood import Categorical
from lightning_mpq.options import CandidateOptions
from lightning_mpq.pipeline.quantize import temporarily_packed
from lightning_mpq.repair.batchnorm import measure_batchnorm, reestimate_batchnorm
from lightning_mpq.rounding.independent import round_candidates

from .accuracy import outputs
from .additive_scores import additive_scores
from .common import Demand, write_results
from .networks import calibration, data_module, held_out, trained
from .parts import LEFT_OUT, parser_of, part, settings_of

ROUNDINGS = ("nearest", "second_order")
STATISTICS = ("frozen", "reestimated")
KEYS = ("rounding", "statistics", "plans")
UNITLESS = ("weight_error", "gradient_error", "output_error")
Predictor = Callable[[Sequence[int]], float]


def main() -> None:
    """Parse the command line, measure, print and write."""
    parser = parser_of("fidelity", __doc__)
    parser.add_argument("--plans", type=int, default=200, help="plans of evenly drawn widths")
    parser.add_argument("--calibration", type=int, default=512, help="training images for the Taylor models")
    parser.add_argument("--held-out", type=int, default=1024, help="images that plans are measured on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--roundings", nargs="+", choices=ROUNDINGS, default=ROUNDINGS)
    parser.add_argument("--statistics", nargs="+", choices=STATISTICS, default=STATISTICS)
    arguments = parser.parse_args()
    plans = [
        row
        for rounding, statistics in product(arguments.roundings, arguments.statistics)
        for row in part(
            "fidelity",
            f"{rounding}-{statistics}-seed{arguments.seed}-{arguments.plans}-{arguments.calibration}-{arguments.held_out}",
            partial(measure, rounding, statistics, arguments),
            only_known=arguments.known,
        )
    ]
    rows = summaries(plans)
    print_table(rows)
    path = write_results(
        "fidelity",
        settings={
            **settings_of(arguments),
            "skipped": LEFT_OUT,
            "plans_measured": plans,
        },
        results=rows,
        demands=demands(rows),
        output=arguments.output,
    )
    print(f"written to {path}")


def measure(rounding: str, statistics: str, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield one row a plan: what each predictor says, and what was measured on held-out images."""
    model = trained("resnet20", arguments.seed, arguments.root, arguments.epochs).network
    data = data_module(arguments.root, arguments.seed)
    batches = calibration(data, arguments.seed, arguments.calibration)
    unseen = held_out(data, arguments.seed, arguments.held_out)
    groups = find_groups(model)
    schemes = CandidateOptions(rounding=rounding).offered_schemes()  # type: ignore[arg-type,unused-ignore]
    rounded = round_candidates(model, batches, groups, make_candidates(groups, schemes=schemes))
    sampling: dict[str, Any] = {"draws": 4, "chunk_size": 32} if statistics == "reestimated" else {}
    taylors = {
        name: profile(
            model,
            batches,
            groups=groups,
            rounded=rounded,
            curvature=name,  # type: ignore[arg-type,unused-ignore]
            likelihood=Categorical(),
            statistics=statistics,  # type: ignore[arg-type,unused-ignore]
            loss_fn=lambda network, batch: cross_entropy(network(batch[0]), batch[1]),
            **(sampling if name == "fisher" else {}),
        )
        # Rounding does not touch what the hessian measures, and it takes as long as all others together.
        for name in ("fisher", "gauss_newton", "secant", *(("hessian",) if rounding == "nearest" else ()))
    }
    fisher = taylors["fisher"]
    predictors: dict[str, Predictor] = {}
    for name, taylor in (*taylors.items(), ("fisher, shrunk", shrink(fisher))):
        predictors[name] = partial(_quadratic, taylor)
        predictors[f"{name}, diagonal"] = partial(_quadratic, _without_pairs(taylor))
    del predictors["fisher, shrunk, diagonal"]
    for name, scores in additive_scores(model, batches, fisher, rounded, arguments.seed).items():
        predictors[name] = partial(_sum, scores)
    reference, labels = outputs(model, unseen)
    float_loss = float(-reference.gather(1, labels[:, None]).mean())
    before = measure_batchnorm(model, batches)
    for kind, chosen in random_plans(fisher, arguments.plans, arguments.seed):
        policy = fisher.policy(chosen)
        with temporarily_packed(model, policy, rounded.of_policy(policy)):
            if statistics == "reestimated":
                reestimate_batchnorm(model, batches, before=before)
            found, _ = outputs(model, unseen)
        yield {
            "rounding": rounding,
            "statistics": statistics,
            "plans": kind,
            "bits": [fisher.candidates[index].scheme.bits for index in chosen],
            "divergence": float((reference.exp() * (reference - found)).sum(1).mean()),
            "task_loss": float(-found.gather(1, labels[:, None]).mean()) - float_loss,
            "predicted": {name: predict(chosen) for name, predict in predictors.items()},
        }


def random_plans(taylor: TaylorModel, count: int, seed: int) -> Iterator[tuple[str, list[int]]]:
    """Yield ``count`` plans of kind "even" and a quarter as many of kind "ranged", all distinct.

    "even": each group's width is drawn evenly from 2 to 8 bits; all averages lie near 5 bits and damage differs little.
    "ranged": drawn from a range that is itself drawn for each plan, so that damage differs by orders of magnitude.
    """
    random = Random(seed)
    offered: dict[str, dict[int, int]] = {}
    for index, candidate in enumerate(taylor.candidates):
        offered.setdefault(candidate.group, {})[candidate.scheme.bits] = index
    plans: dict[tuple[int, ...], str] = {}
    for kind, total in (("even", count), ("ranged", count + count // 4)):
        while len(plans) < total:
            low, high = (2, 8) if kind == "even" else sorted(random.choices(range(2, 9), k=2))
            plans.setdefault(tuple(widths[random.randint(low, high)] for widths in offered.values()), kind)
    for plan, kind in plans.items():
        yield kind, list(plan)


def _sum(scores: Tensor, chosen: Sequence[int]) -> float:
    return float(scores[list(chosen)].sum())


def _quadratic(taylor: TaylorModel, chosen: Sequence[int]) -> float:
    return taylor.predict(taylor.policy(chosen)).value


def _without_pairs(taylor: TaylorModel) -> TaylorModel:
    return replace(taylor, curvature=taylor.curvature.masked_fill(between_groups(taylor), 0.0), sums=None)


def summaries(plans: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return rank correlations and ratios of each predictor.

    Scores without the unit of a loss have rank correlations only. "Better half": the plans of lower measured loss.
    """
    rows = []
    for key in dict.fromkeys(tuple(plan[name] for name in KEYS) for plan in plans):
        mine = [plan for plan in plans if tuple(plan[name] for name in KEYS) == key]
        for name in mine[0]["predicted"]:
            target = "task_loss" if name.startswith("hessian") else "divergence"
            measured = torch.tensor([plan[target] for plan in mine])
            predicted = torch.tensor([plan["predicted"][name] for plan in mine])
            better = measured.argsort()[: len(mine) // 2]
            ratios = predicted / measured
            rows.append(
                {
                    **dict(zip(KEYS, key, strict=True)),
                    "predictor": name,
                    "target": target,
                    "spearman": float(spearmanr(predicted, measured).statistic),
                    "spearman_better_half": float(spearmanr(predicted[better], measured[better]).statistic),
                    "median_ratio": None if name in UNITLESS else float(ratios.median()),
                    "median_ratio_better_half": None if name in UNITLESS else float(ratios[better].median()),
                }
            )
    return rows


def demands(rows: Sequence[Mapping[str, Any]]) -> list[Demand]:
    """Return what was expected of the full matrix of the default estimator."""
    found = []
    for row in rows:
        if row["predictor"] != "fisher":
            continue
        where = f"{row['rounding']} rounding, {row['statistics']} statistics, {row['plans']} plans, fisher"
        rank, ratio = row["spearman"], row["median_ratio"]
        found.append(Demand(f"{where}: Spearman over all plans", ">= 0.97", rank, rank >= 0.97))
        found.append(Demand(f"{where}: median of predicted / measured", "0.6..1.3", ratio, 0.6 <= ratio <= 1.3))
    return found


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print one line a predictor."""
    table = Table(title="Predicted against measured loss of random plans")
    for title in (*KEYS, "predictor"):
        table.add_column(title)
    for title in ("Spearman", "better half", "ratio", "ratio, better half"):
        table.add_column(title, justify="right")
    for row in rows:
        ratios = (row["median_ratio"], row["median_ratio_better_half"])
        table.add_row(
            *(row[key] for key in KEYS),
            row["predictor"],
            f"{row['spearman']:.3f}",
            f"{row['spearman_better_half']:.3f}",
            *("" if ratio is None else f"{ratio:.2f}" for ratio in ratios),
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
