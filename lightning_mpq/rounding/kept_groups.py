"""Groups that were rounded before: what `round_candidates` asks of whoever keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ..groups.candidates import Candidate
from ..groups.groups import LayerGroup
from .rounded_weights import RoundedWeights


class KeptGroups(Protocol):
    """Finds rounded groups and keeps new ones; of several processes rank 0 alone asks."""

    def find(self, group: LayerGroup, offered: Sequence[Candidate]) -> RoundedWeights | None:
        """Return a group as it was rounded to all that it is offered, or None."""
        ...

    def keep(self, group: LayerGroup, offered: Sequence[Candidate], rounded: RoundedWeights) -> RoundedWeights:
        """Keep a group that was rounded, and return it, from where it is kept now."""
        ...
