"""Pretrained networks on unseen samples: a table a network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...tools.quality import BETTER_ABOVE, BETTER_BELOW
from ...tools.results import Content
from ...tools.selecting import grouped, having
from .tables import table

_MODELS = ("chosen", "additive", "uniform", "nearest")
_SHOWN = ("chosen", "uniform", "nearest")
_TITLES = {"divergence_99": "divergence, 99th percentile"}


def block(content: Content, results: str) -> str:
    """Return stored bytes, losses and quality of each policy, this version's beside those of the one before."""
    lines: list[str] = []
    for (network,), rows in grouped(having(content["results"], without="nothing"), "network").items():
        figures = [key for key in (*BETTER_ABOVE, *BETTER_BELOW) if any(row[key] is not None for row in rows)]
        head = [
            "samples, average bits",
            "policy",
            "version",
            "stored bytes",
            "predicted",
            "fitted",
            "held out",
            "unseen",
        ]
        titles = [_TITLES.get(figure, figure) for figure in figures]
        cells = []
        for (samples, budget), found in sorted(grouped(rows, "samples", "budget").items()):
            for model in _MODELS:
                for row in sorted(having(found, model=model), key=lambda row: str(row["version"])):
                    cells.append([f"{samples}, {budget:g}", model, row["version"], *_numbers(row, figures)])
        lines += [f"{network}:", "", *table([*head, *titles], cells, left=3), ""]
    return "\n".join(lines[:-1])


def in_short(content: Content, results: str) -> str:
    """Return the quality of the chosen policy beside simple ones, by the most samples of each network."""
    rows = having(content["results"], without="nothing", version="now")
    cells = []
    for (network,), found in grouped(rows, "network").items():
        most = max(row["samples"] for row in found)
        for (budget,), models in sorted(grouped(having(found, samples=most), "budget").items()):
            of = {row["model"]: row for row in models}
            bytes_ = ", ".join(f"{of[model]['stored_bytes'] / 1e6:.2f}" for model in _SHOWN)
            for figure in (*BETTER_ABOVE, *BETTER_BELOW):
                if of["chosen"][figure] is not None:
                    shown = [f"{of[model][figure]:.3g}" for model in _SHOWN]
                    cells.append([f"{network}, {most}", f"{budget:g}", _TITLES.get(figure, figure), *shown, bytes_])
    head = ["network, calibration samples", "bits", "on unseen samples", "chosen", "uniform", "nearest", "MB of each"]
    return "\n".join(table(head, cells, left=3))


def switched_off(content: Content, results: str) -> str:
    """Return what the chosen policy loses on unseen samples with each default step switched off."""
    cells = []
    jobs = grouped(having(content["results"], version="now", model="chosen"), "network", "samples", "budget")
    for (network, samples, budget), rows in jobs.items():
        for whole in having(rows, without="nothing") if len(rows) > 1 else []:
            for row in (whole, *(row for row in rows if row is not whole)):
                named = (f"{key} {row[key]:.3g}" for key in BETTER_ABOVE if row[key] is not None)
                numbers = (f"{row['unseen_loss']:.3g}", f"{row['unseen_loss'] / whole['unseen_loss']:.2f}")
                taken = f"{sum(row['processor_seconds'].values()):.0f} s"
                job = f"{network}, {samples}, {budget:g}"
                cells.append([job, row["without"], *numbers, ", ".join(named), taken])
    head = ["network, samples, bits", "without", "unseen loss", "over that with all of them", "quality", "all stages"]
    return "\n".join(table(head, cells, left=2))


def _numbers(row: Mapping[str, Any], figures: list[str]) -> list[str]:
    losses = ("predicted_loss", "calibration_loss", "held_out_loss", "unseen_loss")
    shown = ("" if row[key] is None else f"{row[key]:.3g}" for key in (*losses, *figures))
    return [f"{row['stored_bytes']:,}", *shown]


def times(content: Content, results: str) -> str:
    """Return processor seconds and peak memory of each stage of whole jobs."""
    rows = [row for row in content["results"] if row["model"] == "chosen" and row["without"] == "nothing"]
    stages = list(dict.fromkeys(stage for row in rows for stage in row["processor_seconds"]))
    cells = []
    for row in sorted(rows, key=lambda row: (row["network"], row["samples"], row["budget"], row["version"])):
        seconds, peaks = row["processor_seconds"], row["peak_mib"]
        shown = [f"{seconds[s]:.0f} s, {peaks[s]:,} MiB" if s in seconds else "" for s in stages]
        total = f"{sum(seconds.values()):.0f} s"
        cells.append([f"{row['network']}, {row['samples']}, {row['budget']:g}", row["version"], *shown, total])
    return "\n".join(table(["network, samples, bits", "version", *stages, "all"], cells, left=2))
