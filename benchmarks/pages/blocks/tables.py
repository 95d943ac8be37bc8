"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> list[str]:
    r"""Return the lines of a table.

    Args:
        head: Titles of the columns.
        rows: Their cells.
        left: How many of the first columns are words; the others are numbers, aligned to the right.

    Example:
        >>> print(*table(["way", "loss"], [["nearest", "0.1"]]), sep="\n")
        | way | loss |
        | --- | ---: |
        | nearest | 0.1 |
    """
    ruler = ["---"] * left + ["---:"] * (len(head) - left)
    return [f"| {' | '.join(cells)} |" for cells in (head, ruler, *rows)]
