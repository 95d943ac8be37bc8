"""Several processes on one job: sums over ranks, one rank's answer for all, and errors that all ranks raise together.

Every function does nothing but its local part where torch.distributed is not in use, or within `alone`. Otherwise all
ranks of the default process group must call it, in the same order.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import islice
from typing import Any, Generic, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")
_ALONE: ContextVar[bool] = ContextVar("lightning_mpq_alone", default=False)


def active() -> bool:
    """Tell whether other processes take part: a default process group of two or more, and not within `alone`."""
    return dist.is_available() and dist.is_initialized() and not _ALONE.get() and dist.get_world_size() > 1


def rank() -> int:
    """Return this process's rank, 0 for a single process."""
    return dist.get_rank() if active() else 0


def world_size() -> int:
    """Return how many processes take part."""
    return dist.get_world_size() if active() else 1


@contextmanager
def alone() -> Iterator[None]:
    """Work as a single process within the block, for what only some ranks do.

    Example:
        >>> with alone():
        ...     active(), world_size()
        (False, 1)
    """
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Return the sum of a tensor over ranks, bit for bit the same on all of them.

    It is summed on rank 0 and sent out, because an all-reduce promises no more than rounding error between ranks.

    Args:
        tensor: Of one shape and type on all ranks; not changed.
    """
    if not active():
        return tensor
    device = tensor.device if _takes(tensor.device) else _home()
    total = tensor.detach().to(device, copy=True).contiguous()
    dist.reduce(total, dst=0)
    dist.broadcast(total, src=0)
    return total.to(tensor.device)


def gather(value: T) -> list[T]:
    """Return the plain values of all ranks by rank."""
    if not active():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def broadcast(value: T) -> T:
    """Return rank 0's value, tensors in it on this rank's own device; what others pass does not count.

    Args:
        value: Anything that pickle takes. Rank 0 gets the very object back.

    Raises:
        TypeError: On all ranks, if pickle does not take it.
    """
    if not active():
        return value
    content: list[bytes | str] = [""]
    if rank() == 0:
        stream = io.BytesIO()
        try:
            torch.save(value, stream)
            content = [stream.getvalue()]
        except Exception as error:  # of any type, where others wait
            content = [f"{type(error).__name__}: {error}"]
    dist.broadcast_object_list(content, src=0)
    if isinstance(content[0], str):
        raise TypeError(f"What rank 0 has found cannot be sent to other processes ({content[0]}).")
    if rank() == 0:
        return value
    # Written by this very program on rank 0 a moment ago, so that it may be any object.
    return torch.load(io.BytesIO(content[0]), map_location=_own_device, weights_only=False)


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
    _raise_together(gather(None if error is None else _portable(error)), error)


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
            states = gather((bool(own), None if self._error is None else _portable(self._error)))
            _raise_together([portable for _, portable in states], self._error)
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


def mean_over_ranks(values: dict[str, float]) -> dict[str, float]:
    """Return the mean of named numbers over the ranks that have them; a number that is equal everywhere stays.

    Example:
        >>> mean_over_ranks({"loss": 0.5})
        {'loss': 0.5}
    """
    parts = gather(values)
    names = dict.fromkeys(name for part in parts for name in part)
    known = {name: [part[name] for part in parts if name in part] for name in names}
    return {name: sum(numbers) / len(numbers) for name, numbers in known.items()}


def share_buffers(model: nn.Module) -> None:
    """Give a model's buffers the values of rank 0, as DistributedDataParallel does in front of every training step.

    After the last step BatchNorm statistics differ from rank to rank; those of rank 0 are what a checkpoint holds.
    """
    if not active():
        return
    with torch.no_grad():
        for buffer in model.buffers():
            device = buffer.device if _takes(buffer.device) else _home()
            shared = buffer.detach().to(device, copy=True).contiguous()
            dist.broadcast(shared, src=0)
            buffer.copy_(shared)


def _portable(error: Exception) -> Exception:
    """Return an exception that can be sent to other processes and made again there, the given one if possible."""
    try:
        again = pickle.loads(pickle.dumps(error))
        if type(again) is type(error) and str(again) == str(error):
            return error
    except Exception:  # whatever pickling raises, the text alone can be sent
        pass
    return RuntimeError(f"{type(error).__name__}: {error}")


def _raise_together(errors: Sequence[Exception | None], own: Exception | None) -> None:
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


def _takes(device: torch.device) -> bool:
    """Tell whether the process group exchanges tensors on a device; gloo reduces on the CPU only."""
    if dist.get_backend() == "gloo":
        return device.type == "cpu"
    return device.type in {part.partition(":")[0] for part in str(dist.get_backend_config()).split(",")}


def _home() -> torch.device:
    """Return a device that the process group exchanges tensors on."""
    return torch.device("cpu") if _takes(torch.device("cpu")) else _current("cuda")


def _current(kind: str) -> torch.device:
    return torch.device(kind, torch.get_device_module(kind).current_device())


def _own_device(storage: Any, location: str) -> Any:
    """Put a tensor that lay on rank 0's device on the same kind of device of this rank (``map_location``)."""
    kind = location.partition(":")[0]
    return storage if kind == "cpu" else torch.serialization.default_restore_location(storage, str(_current(kind)))
