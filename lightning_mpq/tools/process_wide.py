"""Settings that a whole process has one of, changed for a while by blocks that may overlap in several threads."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from threading import Lock
from typing import Any

from .clean_up import afterwards


class ProcessWide:
    """Context managers that the first of overlapping blocks enters, and the last one leaves, whichever thread it is in.

    If each block set and reset a setting by itself, one that begins within another and ends after it would put back
    what the other had set.

    Example:
        >>> said = ProcessWide(lambda: contextmanager(lambda: (print("set"), (yield), print("reset")))())
        >>> with said():
        ...     with said():
        ...         print("in use")
        set
        in use
        reset
    """

    def __init__(self, *settings: Callable[[], AbstractContextManager[Any]]) -> None:
        """Set nothing yet.

        Args:
            settings: Each makes a context manager that changes something and puts it back.
        """
        self._settings = settings
        self._lock = Lock()
        self._blocks: set[object] = set()
        self._set = ExitStack()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Run a block with the settings."""
        block = object()

        def leave() -> None:
            with self._lock:
                self._blocks.discard(block)
                if not self._blocks:
                    self._set.close()

        with afterwards(leave):
            with self._lock:
                if not self._blocks:
                    with ExitStack() as entered:  # an error in one puts back those before it
                        for setting in self._settings:
                            entered.enter_context(setting())
                        self._set = entered.pop_all()
                self._blocks.add(block)
            yield


@contextmanager
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


quiet = ProcessWide(_no_warnings)
"""Run a block without warnings, where something has said already, or will say, what there is to say."""
