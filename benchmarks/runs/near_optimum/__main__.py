"""Whether policies near the optimum differ at all, before and after layers are rounded in sequence.

ResNet-20, rounded once; the same candidates are chosen from by our model, with and without its pairs, and by the scores
of other tools. Each policy is measured on held-out images: with the codes that were profiled, with BatchNorm statistics
measured again as well, and rounded in sequence as a job packs it.

    python -m benchmarks.runs.near_optimum --root DIR
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.nn.functional import cross_entropy

from lightning_mpq import (
    BitPolicy,
    Budget,
    Categorical,
    RepairOptions,
    TaylorModel,
    allocate,
    find_groups,
    make_candidates,
    profile,
    quantize,
    round_candidates,
)

from ...methods.additive_scores import additive_scores
from ...tools.accuracy import compare, outputs
from ...tools.results import Row
from ...tools.selecting import Rows, having, mean_of
from ...tools.targets import Target, at_most
from ..arguments import add_draws, networks_of, parsed, parser_of, parts_of, settings_of
from ..ending import conclude

SCORES = {"output_error": "Model Optimizer's score", "gradient_error": "AutoScheme's score", "hawq": "HAWQ's score"}
REPAIRS = {
    "profiled_loss": RepairOptions(sequential=False, biases=False, batchnorm=False),
    "repaired_loss": RepairOptions(sequential=False),
    "packed_loss": RepairOptions(),
}
"""How the model is packed, by the name of what is measured then."""


def main(words: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, print and write."""
    parser = parser_of("near_optimum", __doc__, images=True)
    parser.add_argument("--budgets", type=float, nargs="+", default=[2.5, 3.0, 4.0], help="average bits")
    add_draws(parser, held_out=4096)
    arguments = parsed(parser, words, seeds=[0], budgets=[3.0], bits=[2, 3, 8], calibration=64, held_out=64)
    parts = parts_of(arguments)
    rows = [
        row
        for seed in arguments.seeds
        for row in parts.rows(f"resnet20-seed{seed}-{arguments.calibration}", partial(measure, seed, arguments))
    ]
    print_table(rows)
    conclude(arguments, rows, targets(rows), {**settings_of(arguments), "skipped": parts.left_out})


def measure(seed: int, arguments: argparse.Namespace) -> Iterator[Row]:
    """Yield a row for each budget and policy, on one draw of calibration images."""
    networks = networks_of(arguments)
    model, images = networks.network("resnet20", 0), networks.calibration(seed, arguments.calibration, split=0)
    batches, unseen = [batch for batch, _ in images], networks.held_out(0, arguments.held_out)
    reference, _ = outputs(model, unseen)
    groups = find_groups(model)
    offered = make_candidates(groups, arguments.bits, granularities=("channel",))
    rounded = round_candidates(model, batches, groups, offered)
    taylor = profile(model, batches, groups=groups, rounded=rounded, likelihood=Categorical(), seed=seed)
    scores = additive_scores(model, images, taylor, rounded, seed, cross_entropy)
    for budget in arguments.budgets:
        for name, policy in policies(taylor, scores, Budget(average_bits=budget)).items():
            row: Row = {"seed": seed, "budget": budget, "policy": name, "predicted_loss": taylor.predict(policy).value}
            for measured, repair in REPAIRS.items():
                packed = quantize(copy.deepcopy(model), policy, batches, rounded=rounded, repair=repair)
                row[measured] = compare(packed, unseen, reference)["divergence"]
            yield {**row, "widths": list(policy.bits().values())}


def policies(taylor: TaylorModel, scores: Mapping[str, torch.Tensor], budget: Budget) -> dict[str, BitPolicy]:
    """Return what is chosen by our model, by our model without pairs, and by each score, by name."""
    found = {
        "ours": allocate(taylor, budget).policy,
        "ours, without pairs": allocate(taylor, budget, objective="additive").policy,
    }
    nothing = torch.zeros_like(taylor.curvature)
    rest: tuple[Any, ...] = (nothing, taylor.estimator, taylor.loss, taylor.samples)
    for score, name in SCORES.items():
        other = TaylorModel(taylor.groups, taylor.candidates, scores[score], *rest)
        found[name] = allocate(other, budget, objective="additive").policy
    return found


def targets(rows: Rows) -> list[Target]:
    """Return how our policy stands to the best other score, before and after rounding in sequence."""
    found = []
    for budget in dict.fromkeys(row["budget"] for row in rows):
        own = having(rows, budget=budget)
        for loss in ("repaired_loss", "packed_loss"):
            best = min(mean_of(having(own, policy=name), loss) for name in SCORES.values())
            ratio = mean_of(having(own, policy="ours"), loss) / best
            found.append(
                at_most(f"{budget:g} bits, {loss.replace('_', ' ')}: ours over that of the best score", ratio, 1.0)
            )
    return found


def print_table(rows: Rows) -> None:
    """Print one line a policy."""
    table = Table(title="Divergence on held-out images, in nats")
    for title in ("seed", "budget", "policy", "predicted", *REPAIRS):
        table.add_column(title.replace("_", " "))
    for row in rows:
        losses = (f"{row[key]:.3g}" for key in ("predicted_loss", *REPAIRS))
        table.add_row(str(row["seed"]), f"{row['budget']:g}", row["policy"], *losses)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
