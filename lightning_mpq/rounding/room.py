"""Layers whose moments do not fit into memory, refused before any pass is made for them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from ..network.layer_kinds import rows_and_columns
from ..quantizers import InputMoment
from ..tools.room import available_bytes, gigabytes

AT_ONCE = 4
"""Matrices of a layer's moment that stand together while it is rounded: the sums, those of half of the samples
in single precision, their mean, and its factor."""


def refuse_without_room(layers: Mapping[str, nn.Module], at_once: int = AT_ONCE) -> None:
    """Refuse layers of which a single one has no room to be rounded.

    Args:
        layers: Name to layer.
        at_once: How many matrices of the size of its moment a layer takes while it is rounded.

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
    if available is not None and at_once * sizes[largest] > available:
        raise MemoryError(
            f"The layer {largest!r} is multiplied with {rows_and_columns(layers[largest])[1]:,} inputs: to round it by "
            f"their moment takes {gigabytes(at_once * sizes[largest])}, and {weight.device} has "
            f"{gigabytes(available)} left. Keep it in float (keep_float), offer schemes that need no inputs "
            f"(rounding='nearest'), or use a device with more memory."
        )
