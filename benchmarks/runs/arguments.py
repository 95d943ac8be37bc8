"""What every benchmark is asked on the command line, and what a quick run takes in place of it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..problems.made_up_images import made_up_images
from ..problems.trained import EPOCHS, TrainedNetworks
from ..tools.parts import FOLDER, Parts

QUICK = Path("outputs/quick")


def parser_of(
    benchmark: str, description: str | None, images: bool = False, writes: str | None = ""
) -> argparse.ArgumentParser:
    """Return a parser of what all benchmarks are asked.

    Args:
        benchmark: Name of the benchmark.
        description: What ``--help`` begins with.
        images: Whether it needs networks that are trained on Fashion-MNIST.
        writes: What follows its name in that of its result file; None if it writes none.
    """
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        f"python -m benchmarks.runs.{benchmark}",
        description=description,
        formatter_class=formatter,
        allow_abbrev=False,
    )
    made_up = ", small networks and made-up images" if images else ""
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"seconds, to see that everything runs: little of everything{made_up}; written to {QUICK}",
    )
    if images:
        parser.add_argument("--root", type=Path, help="folder of the four IDX files of Fashion-MNIST")
        parser.add_argument("--epochs", type=int, default=EPOCHS, help="epochs of the float training")
    if images and writes is not None:
        parser.add_argument("--known", action="store_true", help="only collect the parts that are there")
    if writes is not None:
        default = f"benchmarks/results/{benchmark}{writes}.json"
        parser.add_argument("--output", type=Path, help=f"file to write; default {default}")
    parser.set_defaults(benchmark=benchmark, images=images)
    return parser


def add_draws(parser: argparse.ArgumentParser, held_out: int) -> None:
    """Ask for draws of calibration images, the widths that are offered, and so many images by default to judge by."""
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="draws of the calibration images")
    parser.add_argument("--bits", type=int, nargs="+", default=list(range(2, 9)), help="widths that are offered")
    parser.add_argument("--calibration", type=int, default=512)
    parser.add_argument("--held-out", type=int, default=held_out)


def parsed(parser: argparse.ArgumentParser, words: Sequence[str] | None, **quick: Any) -> argparse.Namespace:
    """Return the arguments; with ``--quick`` others are the defaults, and nothing is written over real results.

    Args:
        parser: What `parser_of` returned, with the benchmark's own arguments.
        words: The command line; None for that of the process.
        quick: The defaults of a quick run.
    """
    given = sys.argv[1:] if words is None else words
    wants_images = parser.get_default("images")
    if "--quick" in given:
        parser.set_defaults(output=QUICK / f"{parser.get_default('benchmark')}.json", **quick)
        if wants_images:
            parser.set_defaults(epochs=2)  # one would be five steps, too few for a one-cycle schedule
    arguments = parser.parse_args(given)
    if wants_images and arguments.root is None:
        if not arguments.quick:
            parser.error("--root=FOLDER is needed, with the four IDX files of Fashion-MNIST; or --quick.")
        arguments.root = made_up_images(QUICK / "images")
    return arguments


def networks_of(arguments: argparse.Namespace) -> TrainedNetworks:
    """Return the trained networks that a benchmark is to be measured on."""
    if arguments.quick:
        return TrainedNetworks(arguments.root, arguments.epochs, small=True, cache=None)
    return TrainedNetworks(arguments.root, arguments.epochs)


def parts_of(arguments: argparse.Namespace) -> Parts:
    """Return the kept parts of a benchmark; a quick run keeps none."""
    folder = None if arguments.quick else FOLDER
    return Parts(arguments.benchmark, getattr(arguments, "known", False), folder)


def settings_of(arguments: argparse.Namespace, *others: str) -> dict[str, Any]:
    """Return what a benchmark was asked, without paths, ``--known`` and the arguments that are named."""
    apart = {"root", "known", "output", "benchmark", "images", *others, *(() if arguments.quick else ("quick",))}
    return {key: value for key, value in vars(arguments).items() if key not in apart}
