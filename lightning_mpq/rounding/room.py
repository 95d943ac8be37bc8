"""Layers whose moments do not fit into memory, refused before any pass is made for them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from ..network.layer_kinds import rows_and_columns
from ..quantizers import InputMoment
from ..tools.room import available_bytes, gigabytes

AT_ONCE = 4
"""Matrices of a layer's moment that stand together while it is rounded: by the float model's inputs its sums, those of
half of the samples in single precision, their mean, and its factor; in sequence both halves' own moments and shifts."""


def refuse_without_room(layers: Mapping[str, nn.Module]) -> None:
    """Refuse layers of which a single one has no room to be rounded.

    Args:
        layers: Name to layer.

    Raises:
        MemoryError: If the largest moment does not fit; names the layer, what it takes and what there is.
    """
    sizes = {name: InputMoment.bytes_of_matrix(layer) for name, layer in layers.items()}
    if not sizes:
        return
    largest = max(sizes, key=sizes.__getitem__)
    weight = layers[largest].weight
    assert isinstance(weight, Tensor)
    available = available_bytes(weight.device)
    if available is not None and AT_ONCE * sizes[largest] > available:
        raise MemoryError(
            f"The layer {largest!r} is multiplied with {rows_and_columns(layers[largest])[1]:,} inputs: to round it by "
            f"their moment takes {gigabytes(AT_ONCE * sizes[largest])}, and {weight.device} has "
            f"{gigabytes(available)} left. Keep it in float (keep_float), offer schemes that need no inputs "
            f"(rounding='nearest'), or use a device with more memory."
        )
