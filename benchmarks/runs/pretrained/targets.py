"""What holds on unseen samples: little overfitting, less damage than before, no figure worse than with one width."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ...tools.quality import BETTER_ABOVE, BETTER_BELOW
from ...tools.selecting import Rows, having
from ...tools.targets import Target, at_least, at_most, between

MINUTES = {"minilm": 4.0, "smollm2": 25.0}
MOST_BYTES = 1.05
"""Times those of the chosen policy, of one width everywhere that it is held against."""
JOB = ("version", "network", "samples", "budget")


def targets(rows: Rows) -> list[Target]:
    """Return the targets that rows can answer: those of the present version, nothing switched off."""
    found = []
    for chosen in having(rows, model="chosen", version="now", without="nothing"):
        job = {key: chosen[key] for key in JOB}
        name = f"{chosen['network']}, {chosen['samples']} samples, {chosen['budget']:g} bits"
        if chosen["samples"] >= 512:
            ratio = chosen["unseen_loss"] / chosen["calibration_loss"]
            found.append(at_most(f"{name}: loss on unseen over that on calibration samples", ratio, 1.5))
        ratio = chosen["predicted_loss"] / chosen["unseen_loss"]
        found.append(between(f"{name}: predicted loss over that on unseen samples", ratio, 0.7, 1.4))
        seconds = chosen["processor_seconds"]
        if seconds.get("profile", 0.0) > 1:  # neither of them was kept by a job before
            ratio = seconds["round"] / seconds["profile"]
            found.append(
                at_most(f"{name}: processor time of rounding all candidates over that of the profile", ratio, 3.0)
            )
        for before in having(rows, **{**job, "version": "before"}, model="chosen", without="nothing"):
            ratio = chosen["unseen_loss"] / before["unseen_loss"]
            found.append(at_most(f"{name}: loss on unseen samples over that of the version before", ratio, 0.7))
        for uniform in having(rows, **job, model="uniform", without="nothing"):
            if uniform["stored_bytes"] > MOST_BYTES * chosen["stored_bytes"]:
                continue  # between two widths there is none to compare with
            found += list(_no_worse(name, chosen, uniform))
        if chosen["network"] in MINUTES and chosen["samples"] >= 512:
            minutes = sum(chosen["seconds"].values()) / 60
            found.append(at_most(f"{name}: minutes of the whole job", minutes, MINUTES[chosen["network"]]))
    return found


def _no_worse(name: str, chosen: Mapping[str, Any], uniform: Mapping[str, Any]) -> Iterator[Target]:
    for figure in (*BETTER_ABOVE, *BETTER_BELOW):
        if chosen.get(figure) is not None:
            bound = at_least if figure in BETTER_ABOVE else at_most
            what = f"{name}: {figure.replace('_', ' ')}, the bound being that of one width everywhere"
            yield bound(what, chosen[figure], uniform[figure])
