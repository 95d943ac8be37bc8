"""Rows of a table by their values, and means over them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import stdev
from typing import Any

Rows = Sequence[Mapping[str, Any]]


def having(rows: Rows, **values: Any) -> list[Mapping[str, Any]]:
    """Return the rows that have all these values.

    Example:
        >>> having([{"bits": 2, "loss": 0.5}, {"bits": 3, "loss": 0.1}], bits=3)
        [{'bits': 3, 'loss': 0.1}]
    """
    return [row for row in rows if all(row.get(key) == value for key, value in values.items())]


def grouped(rows: Rows, *keys: str) -> dict[tuple[Any, ...], list[Mapping[str, Any]]]:
    """Return the values of the keys, in the order of their first row, to the rows that have them."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(key) for key in keys), []).append(row)
    return groups


def mean(values: Iterable[float]) -> float:
    """Return the arithmetic mean."""
    found = list(values)
    return sum(found) / len(found)


def mean_of(rows: Rows, key: str) -> float:
    """Return the mean of a column."""
    return mean(row[key] for row in rows)


def spread(values: Sequence[float]) -> float:
    """Return the standard deviation, 0 of a single value."""
    return stdev(values) if len(values) > 1 else 0.0
