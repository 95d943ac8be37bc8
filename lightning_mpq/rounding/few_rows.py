"""One warning for all layers that were seen with too few rows to know what their columns have in common."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from math import ceil

ROWS_PER_COLUMN = 4
"""Least squares with n independent rows for C columns do C / (n - C) worse on others than the best: a third here."""


def say_few_rows(seen: Mapping[str, tuple[int, int]]) -> None:
    """Warn of layers with few rows, and say how many more samples would do.

    Args:
        seen: Layer name to its rows, samples times positions, and its columns. Layers without rows do not count.
    """
    few = {name: (rows, columns) for name, (rows, columns) in seen.items() if 0 < rows < ROWS_PER_COLUMN * columns}
    if not few:
        return
    name, (rows, columns) = min(few.items(), key=lambda item: item[1][0] / item[1][1])
    factor = ceil(ROWS_PER_COLUMN * columns / rows)
    warnings.warn(
        f"{len(few)} of {len(seen)} layers were seen with fewer than {ROWS_PER_COLUMN} rows a column, "
        f"{name!r} with {rows:,} rows (samples times positions) for {columns:,} columns: second-order rounding fits "
        "their chance too. "
        f"{factor} times the calibration samples would do ({ROWS_PER_COLUMN * columns:,} rows).",
        UserWarning,
        stacklevel=3,
    )
