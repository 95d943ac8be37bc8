"""A report as one drawing, for a notebook, a paper or a logger."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..allocation.plotting import figure_and_axes
from .frontier_record import FrontierRecord


def plot_losses(
    frontier: FrontierRecord | None, measured: Sequence[tuple[str, float, float]], ax: Any = None
) -> tuple[Any, Any]:
    """Draw predicted and measured loss over megabytes; see `Report.plot`.

    Args:
        frontier: Policies with predicted losses; None for none.
        measured: (name, bytes, measured loss) of models.
        ax: Axes to draw on; a new figure by default.
    """
    fig, ax = figure_and_axes(ax)
    drawn: list[float] = []
    if frontier is not None:
        for name, style in (("frontier", "o-"), ("uniform", "s"), ("additive", "D")):
            found = (*frontier.points, *frontier.others)
            wanted = ("frontier", "chosen") if name == "frontier" else (name,)
            policies = [point for point in found if point.name.split()[0] in wanted]
            if policies:
                losses = [point.predicted_loss for point in policies]
                label = "best policies, predicted" if name == "frontier" else f"{name}, predicted"
                ax.plot([point.stored_bytes / 1e6 for point in policies], losses, style, label=label, fillstyle="none")
                drawn += losses
    if measured:
        points = [(size / 1e6, loss) for _, size, loss in measured]
        ax.plot(*zip(*points, strict=True), "x", color="black", label="measured")
        for (name, _, loss), point in zip(measured, points, strict=True):
            ax.annotate(name, point, xytext=(4, 4), textcoords="offset points", fontsize=8)
            drawn.append(loss)
    if drawn and min(drawn) > 0:
        ax.set_yscale("log")
    ax.set_xlabel("stored MB")
    ax.set_ylabel("change of the loss")
    ax.grid(True, alpha=0.3)
    if drawn:
        ax.legend()
    return fig, ax
