"""Checks of arguments that more than one place makes, each with its one sentence, and values in messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import inf
from numbers import Integral, Real
from reprlib import Repr


class _Short(Repr):
    """Shortens texts and containers, and shows tensors and arrays, long ones, by type and shape only."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 80
        self.maxlong = 40

    def repr_instance(self, value: object, level: int) -> str:
        """Return what an object of some class is."""
        shape = getattr(value, "shape", None)
        if isinstance(shape, tuple) and len(shape):
            return f"a {type(value).__name__} {list(shape)} of {getattr(value, 'dtype', 'unknown type')}"
        return super().repr_instance(value, level)


shown = _Short().repr
"""Return a value for a message, whatever its size.

Example:
    >>> shown({"bits": [1] * 100})
    "{'bits': [1, 1, 1, 1, 1, 1, ...]}"
"""


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
    if not any(isinstance(value, type(choice)) and value == choice for choice in choices):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {shown(value)}.")


def check_mapping(name: str, value: object, example: object) -> None:
    """Refuse what is no mapping from names or patterns.

    Raises:
        ValueError: If it is not; shows an example.

    Example:
        >>> check_mapping("min_bits", 4, {"*.head": 8})
        Traceback (most recent call last):
        ...
        ValueError: min_bits must be a mapping such as {'*.head': 8}, got 4.
    """
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ValueError(f"{name} must be a mapping such as {example}, got {shown(value)}.")


def check_list(name: str, value: object, example: object) -> None:
    """Refuse what is no list, a text among others, whose letters are not meant.

    Raises:
        ValueError: If it is not; shows an example.

    Example:
        >>> check_list("keep_float", "head", ["*.head"])
        Traceback (most recent call last):
        ...
        ValueError: keep_float must be a list such as ['*.head'], got 'head'.
    """
    if isinstance(value, (str, Mapping)) or not isinstance(value, Iterable):
        raise ValueError(f"{name} must be a list such as {example}, got {shown(value)}.")


def is_number(value: object, *, whole: bool = False) -> bool:
    """Tell whether a value is a real number, infinity too, and neither NaN nor true or false.

    Args:
        value: Anything.
        whole: Whether it must be an integer.

    Example:
        >>> is_number(2.5), is_number("2"), is_number(True), is_number(2.5, whole=True)
        (True, False, False, False)
    """
    return isinstance(value, Integral if whole else Real) and not isinstance(value, bool) and bool(value == value)


def check_integer(name: str, value: object) -> None:
    """Refuse what is no integer.

    Raises:
        ValueError: If it is not.
    """
    if not is_number(value, whole=True):
        raise ValueError(f"{name} must be an integer, got {shown(value)}.")


def check_positive(name: str, value: float | None) -> None:
    """Refuse a bound that is neither None nor a positive finite number.

    Raises:
        ValueError: If it is not.
    """
    if value is not None and not (is_number(value) and 0 < value < inf):
        raise ValueError(f"{name} must be a positive number, got {shown(value)}.")
