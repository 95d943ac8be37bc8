"""Clean-ups that come to their end, also if a second Ctrl-C arrives in the midst of them.

The first one ends the work; whoever presses again does so while things are put back. An interrupt within a clean-up
starts it once more, and goes on from there. So a clean-up given to these functions must be one that may be done twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def afterwards(clean_up: Callable[[], object]) -> Iterator[None]:
    """Call a function after the block, whatever ends it.

    Example:
        >>> calls = []
        >>> def clean_up():
        ...     calls.append(len(calls))
        ...     if len(calls) == 1:
        ...         raise KeyboardInterrupt
        >>> try:
        ...     with afterwards(clean_up):
        ...         pass
        ... except KeyboardInterrupt:
        ...     calls
        [0, 1]
    """
    done = False
    try:
        try:  # begun before the block: not even its own line may come between the block and the clean-up
            yield
        finally:
            clean_up()
            done = True
    finally:
        if not done:
            clean_up()


@contextmanager
def after_errors(undo: Callable[[], object]) -> Iterator[None]:
    """Call a function if an error or an interrupt ends the block.

    Example:
        >>> with after_errors(lambda: print("undone")):
        ...     pass
    """
    failed = True

    def clean_up() -> None:
        if failed:
            undo()

    with afterwards(clean_up):
        yield
        failed = False
