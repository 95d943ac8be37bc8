"""What all figures share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

PURPLE, ORANGE, GREY, GREEN = "#6206e0", "#d08000", "#999999", "#008060"


def pyplot() -> Any:
    """Return pyplot, set up so that the same figure gives the same file."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "lightning_mpq"
    from matplotlib import pyplot

    return pyplot


def draw_float(axes: Any, accuracy: float, noise: float) -> None:
    """Draw the float model's accuracy and one standard error around it."""
    axes.axhline(accuracy, color="black", linestyle="--", linewidth=1, label="float")
    axes.axhspan(accuracy - noise, accuracy + noise, color="black", alpha=0.08, label="one standard error")


def finish(panels: Iterable[Any], label: str) -> None:
    """Name the horizontal axis of all panels, and draw a grid."""
    for axes in panels:
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
