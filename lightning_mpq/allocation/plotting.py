"""Figure and axes to draw on, in the manner of torchmetrics."""

from __future__ import annotations

from typing import Any


def figure_and_axes(ax: Any = None) -> tuple[Any, Any]:
    """Return axes with their figure.

    Args:
        ax: Axes to draw on; a new figure by default.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.
    """
    try:
        import matplotlib.pyplot as plt
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "plot needs matplotlib. Install it with: pip install 'lightning_mpq[plots]'."
        ) from error
    return plt.subplots() if ax is None else (ax.get_figure(), ax)
