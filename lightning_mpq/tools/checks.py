"""Checks of arguments that more than one place makes, each with its one sentence."""

from __future__ import annotations

from collections.abc import Iterable


def check_one_of(name: str, value: object, allowed: Iterable[object]) -> None:
    """Refuse a value that is not among those that an argument may have.

    Raises:
        ValueError: If it is not; lists them.

    Example:
        >>> check_one_of("solver", "gurobi", ("highs", "cbc"))
        Traceback (most recent call last):
        ...
        ValueError: solver must be one of 'highs', 'cbc', got 'gurobi'.
    """
    choices = tuple(allowed)
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}.")
