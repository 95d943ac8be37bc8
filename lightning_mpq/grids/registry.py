"""Grids by name. Every file of this folder that defines some is known; others are made known by `register_grid`."""

from __future__ import annotations

from importlib import import_module
from inspect import isabstract
from pkgutil import iter_modules

from ..tools.checks import check_one_of, shown
from .base import Grid

DEFAULT_GRIDS = ("symmetric", "asymmetric", "half")
"""Those that are offered where nobody names one."""
_KNOWN: dict[str, Grid] = {}


def register_grid(grid: Grid) -> Grid:
    """Make a grid known under its name, in the place of an earlier one of that name.

    Raises:
        TypeError: If it is no grid.
    """
    if not isinstance(grid, Grid):
        raise TypeError(f"Expected an instance of a subclass of Grid, got {shown(grid)}.")
    _KNOWN[grid.name] = grid
    return grid


def known_grids() -> tuple[str, ...]:
    """Return the names of all grids."""
    return tuple(_KNOWN)


def grid_named(name: object) -> Grid:
    """Return the grid of a name.

    Raises:
        ValueError: If there is none.
    """
    check_one_of("grid", name, _KNOWN)
    return _KNOWN[name]  # type: ignore[index]


def _find_grids() -> None:
    """Register one instance of each grid that a file of this folder defines."""
    folder = __name__.rpartition(".")[0]
    found = [import_module(f"{folder}.{module.name}") for module in iter_modules(import_module(folder).__path__)]
    for module in found:
        for kind in vars(module).values():
            own = isinstance(kind, type) and issubclass(kind, Grid) and kind.__module__ == module.__name__
            if own and not isabstract(kind) and hasattr(kind, "name"):
                register_grid(kind())


_find_grids()
