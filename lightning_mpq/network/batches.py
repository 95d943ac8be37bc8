"""Batches of any shape: nested tuples, lists and mappings of tensors, moved, counted, cut and described."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sized
from typing import Any

import torch
from torch import Tensor


def map_tensors(function: Callable[[Tensor], Any], batch: Any) -> Any:
    """Apply a function to every tensor in nested tuples, lists and mappings; anything else stays."""
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(map_tensors(function, item) for item in batch))
    if type(batch) in (tuple, list):
        return type(batch)(map_tensors(function, item) for item in batch)
    if isinstance(batch, Mapping):
        return {key: map_tensors(function, value) for key, value in batch.items()}
    return batch


def tensors_of(batch: Any) -> list[Tensor]:
    """Return every tensor of a batch in order."""
    found: list[Tensor] = []
    map_tensors(found.append, batch)
    return found


def to_device(batch: Any, device: torch.device, *, copy: bool = False) -> Any:
    """Return a batch with its tensors, or the whole object if it has a ``to``, on a device, without gradients.

    Tensors that were made under ``torch.inference_mode()`` are copied, since nothing can be differentiated by them.

    Args:
        batch: The batch.
        device: Where to.
        copy: Whether all tensors are in memory of their own, for whoever may change them in place.
    """
    if not isinstance(batch, (Tensor, tuple, list, Mapping)) and hasattr(batch, "to"):
        return batch.to(device)
    return map_tensors(lambda tensor: _plain(tensor.detach()).to(device, non_blocking=True, copy=copy), batch)


def _plain(tensor: Tensor) -> Tensor:
    return tensor.clone() if tensor.is_inference() else tensor


def sample_count(batch: Any) -> int | None:
    """Return the common length of a batch's tensors along dimension 0; None if they have none in common."""
    lengths = {tensor.shape[0] if tensor.dim() else -1 for tensor in tensors_of(batch)}
    return lengths.pop() if len(lengths) == 1 and -1 not in lengths else None


def batch_weight(batch: Any) -> int:
    """Return the number of samples in a batch as its first tensor shows it, 1 if there is none to see.

    Example:
        >>> batch_weight((torch.ones(8, 3), torch.ones(8))), batch_weight("text"), batch_weight(([], {}))
        (8, 1, 0)
    """
    if _holds_nothing(batch):
        return 0
    return next((tensor.shape[0] for tensor in tensors_of(batch) if tensor.dim()), 1)


def _holds_nothing(batch: Any) -> bool:
    """Tell whether a batch is nothing but empty containers, or an object of its own that says it has no items."""
    if isinstance(batch, Mapping):
        return all(map(_holds_nothing, batch.values()))
    if isinstance(batch, (tuple, list)):
        return all(map(_holds_nothing, batch))
    return not isinstance(batch, (Tensor, str)) and isinstance(batch, Sized) and not len(batch)


def inputs_of(batch: Any) -> Any:
    """Return what a model is called on: the first item of a tuple or list, as in (inputs, targets), else the batch.

    Example:
        >>> inputs_of(("images", "labels")), inputs_of({"input_ids": 3})
        ('images', {'input_ids': 3})
    """
    return batch[0] if isinstance(batch, (tuple, list)) and batch else batch


def of_each_sample(values: Tensor) -> Tensor:
    """Return the sum over all that belongs to a sample, [N]; outputs may be one number a sample, without a dimension.

    Example:
        >>> of_each_sample(torch.ones(2, 3, 4)), of_each_sample(torch.ones(2))
        (tensor([12., 12.]), tensor([1., 1.]))
    """
    return values.flatten(1).sum(1) if values.dim() > 1 else values


def slice_batch(batch: Any, start: int, stop: int) -> Any:
    """Return samples start..stop of a batch for which `sample_count` is not None."""
    return map_tensors(lambda tensor: tensor[start:stop], batch)


def split_batch(batch: Any, chunk_size: int | None) -> Iterator[Any]:
    """Yield a batch in as few chunks of at most ``chunk_size`` samples as can be, whole if it is None or cannot be cut.

    Sizes differ by one at most: statistics over a chunk of a few left over would be no statistics.

    Example:
        >>> [len(chunk) for chunk in split_batch(torch.ones(33, 2), 32)]
        [17, 16]
    """
    count = sample_count(batch)
    if chunk_size is None or count is None or count <= chunk_size:
        yield batch
        return
    size, larger = divmod(count, chunks := -(-count // chunk_size))
    for number in range(chunks):
        start = number * size + min(number, larger)
        yield slice_batch(batch, start, start + size + (number < larger))


def describe_batch(batch: Any) -> str:
    """Return what a batch is, for messages.

    Example:
        >>> describe_batch({"ids": torch.zeros(2, 3), "name": "x"})
        "a dict with 'ids': a float32 tensor [2, 3], 'name': a str"
    """
    if isinstance(batch, Tensor):
        return f"a {str(batch.dtype).removeprefix('torch.')} tensor {list(batch.shape)}"
    if isinstance(batch, (tuple, list)):
        return f"a {type(batch).__name__} of {', '.join(map(describe_batch, batch[:4])) or 'nothing'}"
    if isinstance(batch, Mapping):
        return "a dict with " + ", ".join(f"{key!r}: {describe_batch(batch[key])}" for key in list(batch)[:4])
    return f"a {type(batch).__name__}"
