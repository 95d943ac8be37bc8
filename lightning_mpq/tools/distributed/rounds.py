"""A loop over the items of all ranks that every rank leaves at the same time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Generic, TypeVar

from .errors import portable, raise_together, refuse_empty_ranks
from .exchange import gather
from .processes import active

T = TypeVar("T")


class Rounds(Generic[T]):
    """Goes through the items of all ranks in rounds of one item a rank, until every rank has come to its end.

    All ranks see the same number of rounds, so that they can exchange something after each of them, whatever the
    numbers of their items. An error within `step` is raised on all ranks at the start of the next round.

    Example:
        >>> rounds = Rounds([1, 2])
        >>> for own in rounds:
        ...     with rounds.step():
        ...         print(own)
        [1]
        [2]
    """

    def __init__(self, items: Iterable[T], what: str = "calibration batch") -> None:
        """Start at the first item.

        Args:
            items: This rank's items.
            what: What an item is, for messages.
        """
        self._items = iter(items)
        self._what = what
        self._error: Exception | None = None

    def __iter__(self) -> Iterator[list[T]]:
        """Yield this rank's item of each round as a list, empty once its items have ended.

        Raises:
            ValueError: On all ranks, if some rank has no item at all while others have.
            Exception: On all ranks, what one of them raised in a step or in making its next item.
        """
        if not active():
            for item in self._items:
                yield [item]
            return
        first = True
        while True:
            own: list[T] = []
            with self.step():
                if self._error is None:
                    own.extend(islice(self._items, 1))
            states = gather((bool(own), None if self._error is None else portable(self._error)))
            raise_together([portable for _, portable in states], self._error)
            has = [has_item for has_item, _ in states]
            if not any(has):
                return
            if first:
                refuse_empty_ranks(has, self._what)
            first = False
            yield own

    @contextmanager
    def step(self) -> Iterator[None]:
        """Keep an error of the block for the next round, where all ranks raise it; raise it now if alone."""
        try:
            yield
        except Exception as error:
            if not active():
                raise
            self._error = self._error or error
