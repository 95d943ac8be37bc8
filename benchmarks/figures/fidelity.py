"""Predicted against measured loss of random policies."""

from __future__ import annotations

from typing import Any

from ..tools.results import Content
from ..tools.selecting import grouped, having
from .style import ORANGE, PURPLE, finish, pyplot

_DRAWN = (("fisher, diagonal", ORANGE, "each layer alone"), ("fisher", PURPLE, "all pairs"))


def draw(content: Content) -> Any:
    """Draw the full matrix and its diagonal: medians of bins of policies, and the range of eight tenths of each."""
    cases = grouped(content["curves"], "rounding", "statistics")
    figure, panels = pyplot().subplots(1, len(cases), figsize=(4 * len(cases), 4), squeeze=False)
    for axes, (case, mine) in zip(panels[0], cases.items(), strict=True):
        for name, color, label in _DRAWN:
            bins = having(mine, predictor=name)
            measured = [row["measured"] for row in bins]
            low, middle, high = ([row[f"predicted_{share}%"] for row in bins] for share in (10, 50, 90))
            axes.fill_between(measured, low, high, color=color, alpha=0.2, linewidth=0)
            axes.plot(measured, middle, marker="o", markersize=3, linewidth=1, color=color, label=label)
        ends = (min(measured), max(measured))
        axes.plot(ends, ends, color="black", linewidth=1)
        axes.set(xscale="log", yscale="log", ylabel="predicted, nats", title=", ".join(case).replace("_", " "))
    finish(panels[0], "measured on unseen images, nats")
    panels[0][0].legend()
    return figure
