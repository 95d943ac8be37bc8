"""Accuracy and divergence of the main job against bytes."""

from __future__ import annotations

from typing import Any

from ..tools.accuracy import standard_error
from ..tools.results import Content
from ..tools.selecting import having
from .style import GREY, ORANGE, PURPLE, draw_float, finish, pyplot

_STYLES = {
    "uniform": ("s", GREY, "one width everywhere"),
    "additive": ("^", ORANGE, "additive policy"),
    "chosen": ("o", PURPLE, "chosen policy"),
}


def draw(content: Content) -> Any:
    """Draw test accuracy and divergence from the float model against stored kilobytes for all models."""
    rows = content["results"]
    base = having(rows, model="float")[0]
    figure, (left, right) = pyplot().subplots(1, 2, figsize=(10, 4))
    for model, (marker, color, label) in _STYLES.items():
        for axes, key, factor in ((left, "test_accuracy", 100), (right, "measured_loss", 1)):
            points = sorted({(row["stored_bytes"] / 1000, factor * row[key]) for row in having(rows, model=model)})
            axes.plot(*zip(*points, strict=True), marker=marker, color=color, label=label)
    draw_float(left, 100 * base["test_accuracy"], standard_error(base["test_accuracy"]))
    left.set(ylabel="test accuracy, %", title="accuracy on 10,000 test images")
    left.set_ylim(100 * base["test_accuracy"] - 2, 100 * base["test_accuracy"] + 1)
    right.set(ylabel="nats per image", yscale="log", title="divergence from the float model")
    finish((left, right), "stored bytes of the whole model, kB")
    left.legend(loc="lower right")
    return figure
