"""Sixteen levels of ggml, closer to each other near zero; a float16 scale for 32 columns. See ``grids/ggml.py``."""

from __future__ import annotations

from torch import Tensor, maximum

from .table import TableGrid

LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""In units of ggml's scale (``kvalues_iq4nl``)."""


class IQ4NL(TableGrid):
    """Levels for bell-shaped weights: 4.5 bits a weight."""

    name = "iq4_nl"
    bits = (4,)
    learnable_scale = False
    table = tuple(level / 127 for level in LEVELS)

    def exact_scale(self, low: Tensor, high: Tensor, bits: int) -> Tensor:
        """See `Grid.exact_scale`; the largest level is less far from zero than the least."""
        return maximum(-low, high * (127 / LEVELS[-1]))

    def as_stored(self, scale: Tensor, zero_point: Tensor | None, bits: int) -> tuple[Tensor, Tensor | None]:
        """See `Grid.as_stored`: the largest level is 127 times a float16 number."""
        return ((scale.float() / 127).half().float() * 127).to(scale.dtype), zero_point
