"""How every benchmark ends: targets on the terminal, a result file, and where it is."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from ..tools.results import Row, write_results
from ..tools.targets import Target, print_targets


def conclude(
    arguments: argparse.Namespace,
    rows: Sequence[Row],
    targets: Sequence[Target],
    settings: Mapping[str, Any],
    *,
    variant: str = "",
    **others: Any,
) -> None:
    """Print the targets and write the result file.

    Args:
        arguments: What `parsed` returned.
        rows: What was measured.
        targets: What was to be reached.
        settings: What was asked, and under ``skipped`` what was left out.
        variant: What follows the benchmark's name in that of its file.
        others: More of what `write_results` takes.
    """
    print_targets(targets, arguments.quick)
    name, output = f"{arguments.benchmark}{variant}", arguments.output
    print(
        f"written to {write_results(name, settings=settings, results=rows, targets=targets, output=output, **others)}"
    )
