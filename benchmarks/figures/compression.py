"""Accuracy against bytes for every way of rounding, policy and repair."""

from __future__ import annotations

from math import sqrt
from typing import Any

from ..tools.accuracy import standard_error
from ..tools.results import Content
from ..tools.selecting import grouped, having, mean_of
from .style import GREEN, GREY, ORANGE, PURPLE, draw_float, finish, pyplot

_NETWORKS = {"resnet20": "ResNet-20", "mobilenet": "MobileNetV2-like (depthwise)"}
_COLORS = {"uniform": GREY, "additive": ORANGE, "quadratic": PURPLE}
_WAYS = {
    (rounding, policy): (marker, color, f"{rounding.replace('_', ' ')}, {policy}")
    for rounding, marker in (("nearest", "s"), ("second_order", "o"))
    for policy, color in _COLORS.items()
}
_WAYS["sequential", "quadratic"] = ("D", GREEN, "in sequence, quadratic (default)")


def draw(content: Content) -> Any:
    """Draw one panel for each network, means over seeds."""
    rows = content["results"]
    found = [name for name in _NETWORKS if having(rows, network=name)]
    figure, panels = pyplot().subplots(1, len(found), figsize=(5 * len(found) + 2, 4.6), squeeze=False)
    for axes, network in zip(panels[0], found, strict=True):
        mine = having(rows, network=network)
        base = having(mine, rounding="float")
        accuracy = mean_of(base, "accuracy")
        draw_float(axes, accuracy, standard_error(accuracy / 100) / sqrt(len(base)))
        for (rounding, policy), (marker, color, label) in _WAYS.items():
            for repair in (False, True):
                curve = having(mine, rounding=rounding, policy=policy, repair=repair)
                points = sorted(
                    (mean_of(seeds, "stored_bytes") / 1000, mean_of(seeds, "accuracy"))
                    for seeds in grouped(curve, "budget").values()
                )
                axes.plot(
                    *zip(*points, strict=True),
                    marker=marker,
                    markersize=4,
                    color=color,
                    linestyle="-" if repair else ":",
                    markerfacecolor=color if repair else "white",
                    label=f"{label}{', repaired' if repair else ''}",
                )
        title = f"{_NETWORKS[network]}, float: {base[0]['stored_bytes'] / 1000:,.0f} kB"
        axes.set(ylabel="test accuracy, %", title=title, ylim=(accuracy - 7, accuracy + 0.6))
    finish(panels[0], "stored bytes of the whole model, kB")
    panels[0][-1].legend(loc="upper left", bbox_to_anchor=(1.02, 1), fontsize=8)
    return figure
