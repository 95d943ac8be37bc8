"""The main job, measured: train, then quantize at several budgets; four models each, on the test split.

Policies are chosen by training images alone; validation and test images only report. The figures of the test split are
the ones in the documentation.

    python -m benchmarks.runs.main_job digits
    python -m benchmarks.runs.main_job fashion_mnist --root DIR
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from hydra import compose, initialize_config_module
from rich.console import Console
from rich.table import Table

from ...tools.results import Row
from ..arguments import QUICK as QUICK_FOLDER
from ..arguments import parsed, parser_of
from ..ending import conclude
from .configuration import overrides
from .measuring import measure
from .targets import targets


def main(words: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, print and write."""
    parser = parser_of("main_job", __doc__, writes="-EXPERIMENT")
    parser.add_argument("experiment", nargs="?", choices=("digits", "fashion_mnist"), default="digits")
    parser.add_argument("--root", type=Path, help="folder of the four IDX files (fashion_mnist)")
    parser.add_argument("--budgets", type=float, nargs="+", default=[2.25, 2.5, 3.0, 4.0], help="average bits")
    parser.add_argument("--cache", type=Path, default=Path("outputs/cache"), help="folder of trained weights")
    arguments = parsed(parser, words, budgets=[3.0], cache=QUICK_FOLDER / "cache")
    with TemporaryDirectory() as scratch, initialize_config_module("lightning_mpq.conf", version_base="1.3"):
        config = compose("config", [*overrides(arguments), f"output_dir={scratch}"])
        rows, stages, command = measure(config, arguments.budgets, repeats=1 if arguments.quick else 3)
    print_table(rows)
    for stage, taken in stages.items():
        print(f"{stage}: {taken['forward_passes']:.1f} forward passes over the same samples")
    reached = targets(arguments.experiment, rows, stages)
    conclude(
        arguments,
        rows,
        reached,
        {
            "budgets": list(arguments.budgets),
            "seed": config.seed,
            "epochs": config.trainer.max_epochs,
            "command_seconds": command,
            "stages": stages,
            "calibration_batches": config.callbacks.mpq.calibration_batches,
            "widths": list(config.candidates.bits),
            "skipped": [],
        },
        variant=f"-{arguments.experiment}",
    )


def print_table(rows: Sequence[Row]) -> None:
    """Print one line for each budget and model."""
    table = Table(title="The main job, on the test split")
    for title in ("budget", "model", "bits/weight", "stored bytes", "test accuracy", "predicted loss", "measured loss"):
        table.add_column(title, justify="left" if title == "model" else "right")
    for row in rows:
        table.add_row(
            f"{row['budget_bits']:g}",
            row["name"],
            f"{row['average_bits']:.3f}",
            f"{row['stored_bytes']:,}",
            f"{100 * row['test_accuracy']:.2f} %",
            "-" if row["predicted_loss"] is None else f"{row['predicted_loss']:.4f}",
            "-" if row["measured_loss"] is None else f"{row['measured_loss']:.4f}",
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
