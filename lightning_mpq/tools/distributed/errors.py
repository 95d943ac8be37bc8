"""Errors that all ranks raise together, so that none waits for one that has failed."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from .exchange import broadcast, gather
from .processes import active, alone, rank

T = TypeVar("T")


def on_rank_zero(function: Callable[[], T]) -> T:
    """Run a function on rank 0 only, as if it were alone, and return its result on all ranks.

    Raises:
        Exception: On all ranks, what the function raised on rank 0.
    """
    if not active():
        return function()
    result: Any = None
    with errors_shared():
        if rank() == 0:
            with alone():
                result = function()
    return broadcast(result)


@contextmanager
def errors_shared() -> Iterator[None]:
    """Raise at the end of the block, on all ranks, what any rank raised within; of several, the first rank's.

    Without it a rank that fails leaves the others waiting at the next exchange. Within the block ranks must not
    wait for each other, or only in ways that fail on all of them alike.
    """
    if not active():
        yield
        return
    error: Exception | None = None
    try:
        yield
    except Exception as caught:
        error = caught
    raise_together(gather(None if error is None else portable(error)), error)


def refuse_empty_ranks(filled: Sequence[Any], what: str = "calibration batch") -> None:
    """Raise the same sentence on all ranks if some of them have nothing while others have.

    Args:
        filled: For each rank, something true if it has any; from `gather`.
        what: What is missing.
    """
    empty = [str(number) for number, has in enumerate(filled) if not has]
    if empty and len(empty) < len(filled):
        raise ValueError(
            f"Every process needs at least one {what}, and of {len(filled)} processes rank {', '.join(empty)} got "
            "none. Give more or smaller batches, or use fewer processes."
        )


def portable(error: Exception) -> Exception:
    """Return an exception that can be sent to other processes and made again there, the given one if possible."""
    try:
        again = pickle.loads(pickle.dumps(error))
        if type(again) is type(error) and str(again) == str(error):
            return error
    except Exception:  # whatever pickling raises, the text alone can be sent
        pass
    return RuntimeError(f"{type(error).__name__}: {error}")


def raise_together(errors: Sequence[Exception | None], own: Exception | None) -> None:
    """Raise the first rank's error, if there is any: the original on its own rank, a copy elsewhere."""
    first = next((number for number, error in enumerate(errors) if error is not None), None)
    if first is None:
        return
    if first == rank():
        assert own is not None
        raise own
    error = errors[first]
    assert error is not None
    error.add_note(f"(raised on rank {first} of {len(errors)})")
    raise error
