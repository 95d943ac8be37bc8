"""The figures of README, drawn from the committed results; the same results give the same files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import sqrt
from pathlib import Path
from typing import Any

from .accuracy import mean

RESULTS = Path(__file__).parent / "results"
Content = Mapping[str, Any]
_PURPLE, _ORANGE, _GREY, _GREEN = "#6206e0", "#d08000", "#999999", "#008060"


def read(name: str) -> Content:
    """Return a result file."""
    content: Content = json.loads((RESULTS / f"{name}.json").read_text())
    return content


def standard_error(accuracy: float, images: int = 10_000) -> float:
    """Return the standard error, in points, of an accuracy in 0..1 on so many images."""
    return 100 * sqrt(accuracy * (1 - accuracy) / images)


def draw_all() -> list[Path]:
    """Draw every figure whose results are there; return the files."""
    figures: dict[str, tuple[str, Callable[[Content], Any]]] = {
        "main_job": ("main_job-fashion_mnist", main_job),
        "compression": ("compression", compression),
        "fidelity": ("fidelity", fidelity),
    }
    drawn = []
    for name, (source, draw) in figures.items():
        if (RESULTS / f"{source}.json").exists():
            figure = draw(read(source))
            figure.tight_layout()
            path = RESULTS / f"{name}.svg"
            figure.savefig(path, metadata={"Date": None})
            _pyplot().close(figure)
            drawn.append(path)
    return drawn


def main_job(content: Content) -> Any:
    """Draw test accuracy and divergence from the float model against stored kilobytes for all models."""
    rows: Sequence[Content] = content["results"]
    base = next(row for row in rows if row["model"] == "float")
    figure, (left, right) = _pyplot().subplots(1, 2, figsize=(10, 4))
    styles = {
        "uniform": ("s", _GREY, "one width everywhere"),
        "additive": ("^", _ORANGE, "additive plan"),
        "chosen": ("o", _PURPLE, "chosen plan"),
    }
    for model, (marker, color, label) in styles.items():
        mine = [row for row in rows if row["model"] == model]
        for axes, key, factor in ((left, "test_accuracy", 100), (right, "measured_loss", 1)):
            points = sorted({(row["stored_bytes"] / 1000, factor * row[key]) for row in mine})
            axes.plot(*zip(*points, strict=True), marker=marker, color=color, label=label)
    _float_line(left, 100 * base["test_accuracy"], standard_error(base["test_accuracy"]))
    left.set(ylabel="test accuracy, %", title="accuracy on 10,000 test images")
    left.set_ylim(100 * base["test_accuracy"] - 2, 100 * base["test_accuracy"] + 1)
    right.set(ylabel="nats per image", yscale="log", title="divergence from the float model")
    _finish((left, right), "stored bytes of the whole model, kB")
    left.legend(loc="lower right")
    return figure


def compression(content: Content) -> Any:
    """Draw accuracy against stored kilobytes for every way of rounding, plan and repair; means over seeds."""
    rows: Sequence[Content] = content["results"]
    networks = {"resnet20": "ResNet-20", "mobilenet": "MobileNetV2-like (depthwise)"}
    found = [name for name in networks if any(row["network"] == name for row in rows)]
    figure, panels = _pyplot().subplots(1, len(found), figsize=(5 * len(found) + 2, 4.6), squeeze=False)
    colors = {"uniform": _GREY, "additive": _ORANGE, "full": _PURPLE}
    ways = {
        (rounding, plan): (marker, color, f"{rounding.replace('_', ' ')}, {plan}")
        for rounding, marker in (("nearest", "s"), ("second_order", "o"))
        for plan, color in colors.items()
    }
    ways["sequential", "full"] = ("D", _GREEN, "in sequence, full (default)")
    for axes, network in zip(panels[0], found, strict=True):
        mine = [row for row in rows if row["network"] == network]
        base = [row for row in mine if row["rounding"] == "float"]
        accuracy = mean(row["accuracy"] for row in base)
        _float_line(axes, accuracy, standard_error(accuracy / 100) / sqrt(len(base)))
        for (rounding, plan), (marker, color, label) in ways.items():
            for repair in (False, True):
                wanted = (rounding, plan, repair)
                curve = [row for row in mine if (row["rounding"], row.get("plan"), row.get("repair")) == wanted]
                points = [
                    (mean(row["stored_bytes"] / 1000 for row in part), mean(row["accuracy"] for row in part))
                    for part in _by(curve, "budget")
                ]
                axes.plot(
                    *zip(*sorted(points), strict=True),
                    marker=marker,
                    markersize=4,
                    color=color,
                    linestyle="-" if repair else ":",
                    markerfacecolor=color if repair else "white",
                    label=f"{label}{', repaired' if repair else ''}",
                )
        title = f"{networks[network]}, float: {base[0]['stored_bytes'] / 1000:,.0f} kB"
        axes.set(ylabel="test accuracy, %", title=title, ylim=(accuracy - 7, accuracy + 0.6))
    _finish(panels[0], "stored bytes of the whole model, kB")
    panels[0][-1].legend(loc="upper left", bbox_to_anchor=(1.02, 1), fontsize=8)
    return figure


def fidelity(content: Content) -> Any:
    """Draw predicted against measured loss of random plans: the full matrix and its diagonal."""
    plans: Sequence[Content] = content["settings"]["plans_measured"]
    cases = list(dict.fromkeys((plan["rounding"], plan["statistics"]) for plan in plans))
    figure, panels = _pyplot().subplots(1, len(cases), figsize=(4 * len(cases), 4), squeeze=False)
    for axes, case in zip(panels[0], cases, strict=True):
        mine = [plan for plan in plans if (plan["rounding"], plan["statistics"]) == case]
        measured = [plan["divergence"] for plan in mine]
        for name, color in (("fisher, diagonal", _ORANGE), ("fisher", _PURPLE)):
            label = "each layer alone" if "diagonal" in name else "all pairs"
            axes.scatter(measured, [plan["predicted"][name] for plan in mine], s=7, color=color, label=label)
        ends = (min(measured), max(measured))
        axes.plot(ends, ends, color="black", linewidth=1)
        axes.set(xscale="log", yscale="log", ylabel="predicted, nats", title=f"{case[0]}, {case[1]}".replace("_", " "))
    _finish(panels[0], "measured on unseen images, nats")
    panels[0][0].legend()
    return figure


def _by(rows: Iterable[Content], key: str) -> list[list[Content]]:
    """Return rows in lists of equal values of a key."""
    parts: dict[Any, list[Content]] = {}
    for row in rows:
        parts.setdefault(row[key], []).append(row)
    return list(parts.values())


def _float_line(axes: Any, accuracy: float, noise: float) -> None:
    axes.axhline(accuracy, color="black", linestyle="--", linewidth=1, label="float")
    axes.axhspan(accuracy - noise, accuracy + noise, color="black", alpha=0.08, label="one standard error")


def _finish(panels: Iterable[Any], label: str) -> None:
    for axes in panels:
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)


def _pyplot() -> Any:
    """Return pyplot, set up so that the same figure gives the same file."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "lightning_mpq"
    from matplotlib import pyplot

    return pyplot
