"""Sums over ranks, plain values of all of them, and what rank 0 sends to the others."""

from __future__ import annotations

import io
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .processes import active, rank, world_size

T = TypeVar("T")


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
