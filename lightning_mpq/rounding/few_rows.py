"""One warning for all layers that were seen with too few rows to know what their columns have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil

from ..tools.warning import warn

ROWS_PER_COLUMN = 4
"""Least squares with n independent rows for C columns do C / (n - C) worse on others than the best: a third here."""

_SHOWN = 8


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
    warn(
        f"{len(few)} of {len(seen)} layers were seen with fewer than {ROWS_PER_COLUMN} rows a column, "
        f"{name!r} with {rows:,} rows (samples times positions) for {columns:,} columns: second-order rounding fits "
        "their chance too. "
        f"{factor} times the calibration samples would do ({ROWS_PER_COLUMN * columns:,} rows)."
    )


def say_few_tokens(seen: Mapping[str, tuple[Sequence[int], int]]) -> None:
    """Warn of experts that few tokens, or none, were sent to, and name them.

    Args:
        seen: Name of a weight [E, out, in] to the tokens that each expert saw, and its columns.
    """
    few = {
        name: [f"{expert} ({rows:,})" for expert, rows in enumerate(counts) if rows < ROWS_PER_COLUMN * columns]
        for name, (counts, columns) in seen.items()
    }
    few = {name: experts for name, experts in few.items() if experts}
    if not few:
        return
    shown = [f"{name}: {', '.join(own[:_SHOWN])}{', ...' * (len(own) > _SHOWN)}" for name, own in few.items()]
    more = f"; and {len(shown) - _SHOWN} more weights" if len(shown) > _SHOWN else ""
    warn(
        f"Experts saw fewer than {ROWS_PER_COLUMN} tokens a column (tokens in brackets) in {'; '.join(shown[:_SHOWN])}"
        f"{more}. Second-order rounding fits their chance, and rounds those that saw none to nearest: take more, or "
        "more varied, calibration samples, or keep these layers in float (keep_float)."
    )
