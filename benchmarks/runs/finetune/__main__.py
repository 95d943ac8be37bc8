"""What fine-tuning after quantization gives back: none, straight-through, learned scales, distillation.

Trained networks are quantized with 1,024 unaugmented training images and trained on for an epoch inside an ordinary
Trainer; the 10,000 test images only report. "2 bits" means every layer at 2 bits, scales on top; all other
budgets are average bits with scales counted.

    python -m benchmarks.runs.finetune --root DIR --networks resnet20 --seeds 0
    python -m benchmarks.runs.finetune --root DIR
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import product

from rich.console import Console
from rich.table import Table

from ...problems.images import CALIBRATION
from ...tools.selecting import Rows, grouped, mean_of
from ..arguments import networks_of, parsed, parser_of, parts_of, settings_of
from ..ending import conclude
from .measuring import VARIANTS, measure
from .step_time import REPEATS, step_ratios
from .targets import targets

NETWORKS = ("resnet20", "mobilenet")
QUICK = ["none", "learned scales, distilled"]


def main(words: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, print and write."""
    parser = parser_of("finetune", __doc__, images=True)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--budgets", type=float, nargs="+", default=[2.0, 2.25, 2.5, 3.0])
    parser.add_argument("--bits", type=int, nargs="+", default=list(range(2, 9)), help="widths that are offered")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--batches", type=int, default=430, help="training batches of 128 images; 430 are an epoch")
    parser.add_argument("--learning-rate", type=float, default=0.003, help="at the start; decays to 0 by a cosine")
    parser.add_argument("--calibration", type=int, default=CALIBRATION, help="training images")
    parser.add_argument("--held-out", type=int, default=4096, help="images that were held out of the training")
    quick = {"networks": NETWORKS[:1], "seeds": [0], "budgets": [2.0], "batches": 2}
    arguments = parsed(parser, words, **quick, variants=QUICK, calibration=128, held_out=64)
    parts = parts_of(arguments)
    wanted = product(arguments.networks, arguments.seeds, arguments.budgets, arguments.variants)
    measured = [
        row
        for name, seed, budget, variant in wanted
        for row in parts.rows(
            f"{name}-seed{seed}-{budget:g}bits-{variant.replace(', ', '-').replace(' ', '_')}-{arguments.batches}"
            f"-lr{arguments.learning_rate:g}",
            partial(measure, name, seed, budget, variant, arguments),
        )
    ]
    rows = [row for row in measured if "skipped" not in row]
    ratios = step_ratios(networks_of(arguments), arguments.networks, 2 if arguments.quick else REPEATS)
    print_table(rows)
    print("step time over float step:", ratios)
    reached = targets(rows, ratios)
    skipped = list(dict.fromkeys(row["skipped"] for row in measured if "skipped" in row))
    conclude(
        arguments,
        rows,
        reached,
        {**settings_of(arguments), "step_time_over_float_step": ratios, "skipped": skipped + parts.left_out},
    )


def print_table(rows: Rows) -> None:
    """Print means over seeds."""
    table = Table(title="Test images, mean over seeds")
    for title in ("network", "budget", "fine-tuning", "seeds", "bits/weight", "accuracy", "points lost", "divergence"):
        table.add_column(title)
    for (name, budget, variant), found in grouped(rows, "network", "budget", "variant").items():
        bits, accuracy, lost, divergence = (
            mean_of(found, key) for key in ("bits", "accuracy", "points_lost", "divergence")
        )
        numbers = (f"{bits:.3f}", f"{accuracy:.2f} %", f"{lost:+.2f}", f"{divergence:.5f}")
        table.add_row(name, f"{budget:g}", variant, str(len(found)), *numbers)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
