"""Which way a forward pass takes with its data: what tells whether two passes hold the same rows in the same places."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_MOVES = {
    *(
        "index",
        "_unsafe_index",
        "index_put",
        "_index_put_impl",
        "index_select",
        "index_add",
        "index_copy",
        "index_fill",
    ),
    *("index_reduce", "gather", "scatter", "scatter_add", "scatter_reduce", "take", "put", "masked_select"),
    *("masked_scatter", "embedding", "repeat_interleave", "max_unpool2d", "max_unpool3d", "_embedding_bag"),
}
"""Operations that move rows to where integers or booleans among their arguments say."""
_ORDERS = {"sort", "topk", "argsort", "msort", "nonzero", "nonzero_static", "_unique2", "unique_dim", "multinomial"}
"""Operations whose results are, or stand in, an order that depends on values."""


class Route(TorchDispatchMode):
    """Sums up what a pass does, all but the numbers that it computes with; use it in a ``with`` block around the pass.

    It holds the operations in their order with the shapes of what they make, and the indices by which rows are sorted,
    selected or sent somewhere. Two passes of the same network whose routes are equal up to some point have the same
    samples and positions in the same places there. Routes that differ may mean no more than that some value decides in
    another way. What a network computes outside of torch is not seen, but what it then does with it is.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self._digest = hashlib.blake2b(digest_size=16)

    def so_far(self) -> bytes:
        """Return what is equal where two routes are."""
        return self._digest.digest()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: object, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation, and note it."""
        result = func(*args, **(kwargs or {}))
        schema = getattr(func, "_schema", None)  # operators of higher order have none
        space, _, name = ("", "", str(func)) if schema is None else schema.name.partition("::")
        if name == "detach":  # done by who watches the pass, too
            return result
        made = tree_leaves(result)
        shapes = [tuple(leaf.shape) for leaf in made if isinstance(leaf, Tensor)]
        plain = [leaf for leaf in made if isinstance(leaf, (bool, int))]  # of item()
        self._digest.update(f"{name}{shapes}{plain}".encode())
        base = name.rstrip("_")
        told = made if base in _ORDERS else ()
        told = tree_leaves((args, kwargs)) if base in _MOVES or space not in ("aten", "prims") else told
        for indices in _integers(told):
            self._digest.update(indices.detach().cpu().contiguous().numpy().tobytes())
        return result


def _integers(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor) and not (value.is_floating_point() or value.is_complex() or value.is_quantized):
            yield value if value.device.type != "meta" else torch.zeros(())
