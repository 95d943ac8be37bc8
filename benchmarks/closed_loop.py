"""What measuring the best few plans, and expanding the loss again, gain on images that no choice has seen.

For each training seed, rounding and budget: the plan as solved, and the plan that the loop keeps, both quantized and
repaired as the callback does it, measured on held-out images.

    python -m benchmarks.closed_loop --root DIR
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import nn

from lightning_mpq.allocation import Budget
from lightning_mpq.modules import packed_layers, restore_layers
from lightning_mpq.network.likelihood import Categorical
from lightning_mpq.options import CandidateOptions, CurvatureOptions
from lightning_mpq.pipeline.pipeline import Pipeline
from lightning_mpq.pipeline.quantize import quantize
from lightning_mpq.policy import BitPolicy
from lightning_mpq.rounding.rounded_weights import RoundedWeights

from .accuracy import compare, mean, outputs
from .common import Demand, write_results
from .networks import Images, calibration, data_module, held_out, trained
from .parts import LEFT_OUT, parser_of, part, settings_of

CASES = (("second_order", 2.1), ("second_order", 2.25), ("nearest", 2.25), ("nearest", 2.5))


def main() -> None:
    """Parse the command line, measure, print and write."""
    parser = parser_of("closed_loop", __doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--calibration", type=int, default=512)
    parser.add_argument("--held-out", type=int, default=2048)
    arguments = parser.parse_args()
    rows = [
        row
        for seed, (rounding, budget) in product(arguments.seeds, CASES)
        for row in part(
            "closed_loop",
            f"resnet20-seed{seed}-{rounding}-{budget:g}-{arguments.calibration}",
            partial(measure, seed, rounding, budget, arguments),
            only_known=arguments.known,
        )
    ]
    print_table(rows)
    path = write_results(
        "closed_loop",
        settings={**settings_of(arguments), "skipped": LEFT_OUT},
        results=rows,
        demands=demands(rows),
        output=arguments.output,
    )
    print(f"written to {path}")


def measure(seed: int, rounding: str, budget: float, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the row of one network, rounding and budget."""
    model = trained("resnet20", seed, arguments.root, arguments.epochs).network
    data = data_module(arguments.root, seed)
    batches, unseen = calibration(data, seed, arguments.calibration), held_out(data, seed, arguments.held_out)
    pipeline = Pipeline(
        Budget(average_bits=budget),
        candidates=CandidateOptions(rounding=rounding),  # type: ignore[arg-type,unused-ignore]
        curvature=CurvatureOptions(likelihood=Categorical(), seed=seed),
    )
    plan = pipeline.plan(model, batches)
    solved = next(trial for trial in plan.trials if trial.plan == "solved")
    kept = next(trial for trial in plan.trials if trial.kept)
    chosen = plan.allocation.policy
    by_bits = {(c.group, c.scheme.bits): c.scheme for c in plan.taylor.candidates}
    first = BitPolicy({group: by_bits[group, bits] for group, bits in solved.bits.items()}, dict(chosen.layers))
    reference, _ = outputs(model, unseen)
    yield {
        "seed": seed,
        "rounding": rounding,
        "budget": budget,
        "kept": f"round {kept.round}: {kept.plan}",
        "rounds": max(trial.round for trial in plan.trials),
        "calibration_solved": solved.measured_loss,
        "calibration_kept": kept.measured_loss,
        "predicted_solved": solved.predicted_loss,
        "held_out_solved": _divergence(model, first, batches, plan.rounded, unseen, reference),
        "held_out_kept": _divergence(model, chosen, batches, plan.rounded, unseen, reference),
        "seconds": dict(pipeline.seconds),
    }


def _divergence(
    model: nn.Module, policy: BitPolicy, batches: Images, rounded: RoundedWeights | None, unseen: Images, reference: Any
) -> float:
    """Return the held-out divergence of a plan, quantized and repaired; the model is then a float one again."""
    state = {name: value.clone() for name, value in model.state_dict().items()}
    floats = {name: model.get_submodule(name) for layers in policy.layers.values() for name in layers}
    quantize(model, policy, batches, rounded=rounded)
    try:
        return compare(model, unseen, reference)["divergence"]
    finally:
        assert packed_layers(model)
        restore_layers(model, floats)
        model.load_state_dict(state)


def demands(rows: Sequence[Mapping[str, Any]]) -> list[Demand]:
    """Return: the loop loses nowhere by more than noise."""
    found = []
    for rounding, budget in CASES:
        mine = [row for row in rows if (row["rounding"], row["budget"]) == (rounding, budget)]
        ratio = mean(row["held_out_kept"] for row in mine) / mean(row["held_out_solved"] for row in mine)
        name = f"ResNet-20, {rounding.replace('_', ' ')}, {budget} bits: held-out loss of the kept over the solved plan"
        found.append(Demand(name, "<= 1.05", ratio, ratio <= 1.05))
    return found


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print one line a case."""
    table = Table(title="Divergence on held-out images")
    for title in ("seed", "rounding", "budget", "predicted", "measured", "kept", "solved plan", "kept plan", "seconds"):
        table.add_column(title)
    for row in rows:
        table.add_row(
            str(row["seed"]),
            row["rounding"],
            f"{row['budget']:g}",
            f"{row['predicted_solved']:.5f}",
            f"{row['calibration_solved']:.5f}",
            row["kept"],
            f"{row['held_out_solved']:.5f}",
            f"{row['held_out_kept']:.5f}",
            f"{row['seconds'].get('trials', 0):.0f}",
        )
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
