"""How far allocations of real size are proved, and in which time and memory: a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...tools.results import Content
from .tables import table

_SIZE = 150
"""Candidates from which a problem is shown."""


def block(content: Content, results: str) -> str:
    """Return one row for each recorded network and each synthetic problem, of several budgets the hardest."""
    ours = [row for row in content["results"] if row["solver"] == "lightning_mpq" and row.get("status") is not None]
    shown: dict[str, Mapping[str, Any]] = {}
    for row in ours:
        name = row["instance"].partition(" at ")[0]
        if row["candidates"] > _SIZE and row["additive_excess"] is not None:
            known = shown.get(name)
            if known is None or row["processor_seconds"] > known["processor_seconds"]:
                shown[name] = row
    sized = any(row["memory"] is not None for row in shown.values())
    cells = []
    for name, row in shown.items():
        gap = "none" if row["gap"] is None else f"{100 * row['gap']:.2g} %"
        matrices = "" if row["memory"] is None else f"{row['memory']:.2g}"
        excess = f"{100 * row['additive_excess']:+.3g} %"
        shape = f"{row['groups']} x {row['candidates'] // row['groups']}"
        cells.append([name, shape, gap, f"{row['processor_seconds']:.2g}", *([matrices] if sized else []), excess])
    head = ["problem", "groups x schemes", "proved gap", "seconds on one core", "additive policy"]
    head[4:4] = ["matrices in memory"] if sized else []
    return "\n".join(table(head, cells))
