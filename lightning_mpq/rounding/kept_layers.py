"""Layers that were rounded in sequence before: what `round_sequentially` asks of whoever keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from ..quantizers import QuantizedRows
from ..schemes import WeightScheme


class KeptLayer(NamedTuple):
    """A layer as it was rounded after those before it.

    Attributes:
        rounded: Its weight.
        paired: Whether it makes up for earlier errors, see `JointMoments`.
    """

    rounded: QuantizedRows
    paired: bool


class KeptLayers(Protocol):
    """Finds layers that were rounded after exactly equal ones, and keeps new ones, from the first to the last.

    Of several processes rank 0 alone asks.
    """

    def begin(self, options: Mapping[str, Any], known: Mapping[str, QuantizedRows]) -> None:
        """Begin with the first layer.

        Args:
            options: What else decides a layer's codes, as plain values.
            known: Layers that are rounded already, and act on the others from the beginning.
        """
        ...

    def find(self, layer: str, scheme: WeightScheme) -> KeptLayer | None:
        """Return the next layer as it was rounded after all those before it, or None."""
        ...

    def keep(self, layer: str, found: KeptLayer) -> None:
        """Keep the layer that was looked for last and not found."""
        ...
