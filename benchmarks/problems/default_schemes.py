"""One scheme for each width, where a benchmark needs no search for the best."""

from __future__ import annotations

from lightning_mpq import WeightScheme


def default_scheme(bits: int) -> WeightScheme:
    """Return the scheme of a width, rounded to nearest by the weight alone.

    With few levels a grid without zero wastes none of them; from 4 bits on a zero level is worth having.

    Example:
        >>> default_scheme(3).grid, default_scheme(4).grid
        ('half', 'symmetric')
    """
    return WeightScheme(bits, grid="half" if bits <= 3 else "symmetric", clip="mse")
