"""Reports of version 1, which checkpoints and folders may hold, in the words of the present one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_WORDS = {
    "additive plan": "additive",
    "chosen plan": "chosen",
    "fine-tuned plan": "fine-tuned",
    "by float inputs": "independent",
    "in sequence": "sequential",
    "BatchNorm statistics": "batchnorm",
    "without shrinking": "unshrunk",
    "solved again": "expanded again",
}


def in_present_words(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a report of version 1 with the names that version 2 has."""
    present = {key: value for key, value in values.items() if key != "reallocations"}
    present["models"] = [{**row, "name": _word(row["name"])} for row in values["models"]]
    present["repair"] = [
        {**row, "rounding": _word(row["rounding"]), "repaired": [_word(step) for step in row["repaired"]]}
        for row in values.get("repair", ())
    ]
    present["trials"] = [
        {"policy": _word(row["plan"]), **{key: value for key, value in row.items() if key != "plan"}}
        for row in values.get("trials", ())
    ]
    present["seconds"] = {
        {"trials": "select", "verdict": "compare"}.get(stage, stage): seconds
        for stage, seconds in values["seconds"].items()
    }
    return present


def _word(old: str) -> str:
    return _WORDS.get(old, old)
