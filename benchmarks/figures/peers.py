"""Loss on unseen samples against bytes, for this package and its peers."""

from __future__ import annotations

from math import ceil
from typing import Any

from ..tools.results import Content
from ..tools.selecting import Rows, grouped, having, mean_of, spread
from .style import PURPLE, finish, pyplot

_MARKERS = "os^vD<>PX*dph8"
_COLUMNS = 3


def draw(content: Content) -> Any:
    """Draw one panel for each network; bars are standard deviations over draws of calibration samples."""
    rows = [row for row in content["results"] if row["unseen_loss"] is not None]
    networks, peers = ([name for (name,) in grouped(rows, key)] for key in ("network", "peer"))
    columns, lines = min(_COLUMNS, len(networks)), ceil(len(networks) / _COLUMNS)
    figure, panels = pyplot().subplots(lines, columns, figsize=(4.6 * columns + 3, 4.3 * lines), squeeze=False)
    colors = pyplot().get_cmap("tab20").colors
    for axes in panels.flat[len(networks) :]:
        axes.remove()
    for axes, network in zip(panels.flat, networks, strict=False):
        for number, peer in enumerate(peers):
            bytes_, losses, errors = _points(having(rows, network=network, peer=peer))
            axes.errorbar(
                bytes_,
                losses,
                errors,
                marker=_MARKERS[number % len(_MARKERS)],
                markersize=4,
                color=PURPLE if peer == "ours" else colors[number % len(colors)],
                linewidth=2 if peer == "ours" else 1,
                label=peer,
            )
        axes.set(yscale="log", ylabel="loss on unseen samples, nats", title=network)
    finish(panels.flat[: len(networks)], "stored bytes of the quantized layers, kB")
    panels[0][-1].legend(loc="upper left", bbox_to_anchor=(1.02, 1), fontsize=8)
    return figure


def _points(rows: Rows) -> tuple[list[float], list[float], list[float]]:
    """Return kilobytes, mean losses and their standard deviations, in the order of bytes."""
    of_budgets = grouped(rows, "budget").values()
    found = sorted(
        (mean_of(own, "stored_bytes") / 1000, mean_of(own, "unseen_loss"), spread([row["unseen_loss"] for row in own]))
        for own in of_budgets
    )
    return [point[0] for point in found], [point[1] for point in found], [point[2] for point in found]
