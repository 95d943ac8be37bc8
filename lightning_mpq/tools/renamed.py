"""Arguments of version 0.1 that have another name now: they work for one more release, and say so."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

from .warning import warn

Function = TypeVar("Function", bound=Callable[..., Any])


def renamed(**arguments: str) -> Callable[[Function], Function]:
    """Let a function take keyword arguments by their names in version 0.1 too, with a warning.

    Args:
        arguments: Old name to the present one.

    Example:
        >>> import warnings
        >>> @renamed(length="size")
        ... def square(size): return size * size
        >>> with warnings.catch_warnings(record=True):
        ...     square(length=3)
        9
    """

    def decorate(function: Function) -> Function:
        @wraps(function)
        def call(*args: Any, **options: Any) -> Any:
            for old, new in arguments.items():
                if old in options and new not in options:
                    warn(f"{old}= of {function.__qualname__} is {new}= now.", DeprecationWarning)
                    options[new] = options.pop(old)
            return function(*args, **options)

        return cast(Function, call)

    return decorate
