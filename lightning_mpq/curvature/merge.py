"""Taylor models of the same network on different data, put together to that of all data."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, zeros

from .accumulation import model_of_sums
from .taylor_model import TaylorModel


def merge(parts: Sequence[TaylorModel]) -> TaylorModel:
    """Return the model of all data of several profiles that differ in their batches only.

    Raises:
        ValueError: If there is none, their settings differ, or one holds no sums (it was not made by `profile`).
    """
    if not parts:
        raise ValueError("Expected at least one Taylor model to merge, got none.")
    first = parts[0]
    if any(part.sums is None for part in parts):
        raise ValueError(
            "Only Taylor models as `profile` made them can be merged; another holds no sums over batches. Profile "
            "again."
        )
    if any(part.settings_hash != first.settings_hash for part in parts):
        raise ValueError(
            "The Taylor models differ in weights, candidates, estimator settings or version; only profiles of the "
            "same model with the same settings on other batches can be merged."
        )
    sums: dict[str, Tensor] = {}
    common = set.intersection(*(set(part.sums or {}) for part in parts))
    for part in parts:
        shift = int(sums.get("blocks.units", zeros(())))  # blocks go on in turn, as in one profile of all data
        for name in sorted(common):
            value = (part.sums or {})[name]
            if name.startswith("blocks.") and value.dim():
                value = value.roll(shift % len(value), 0)
            sums[name] = sums[name] + value if name in sums else value
    return model_of_sums(
        sums,
        groups=first.groups,
        candidates=first.candidates,
        estimator=first.estimator,
        loss=first.loss,
        samples=sum(part.samples for part in parts),
        float_bytes=first.float_bytes,
        settings_hash=first.settings_hash,
        batch_hashes=tuple(digest for part in parts for digest in part.batch_hashes),
    )
