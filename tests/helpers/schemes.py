"""Schemes that tests go through."""

from lightning_mpq.grids.registry import grid_named, known_grids


def grids_with(bits: int) -> list[str]:
    """Return the names of all grids that have levels for a width."""
    return [name for name in known_grids() if bits in grid_named(name).bits]
