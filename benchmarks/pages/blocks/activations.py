"""Weights and inputs quantized together: uniform and mixed policies on test images."""

from __future__ import annotations

from ...tools.results import Content
from .tables import table


def block(content: Content, results: str) -> str:
    """Return what each policy costs and loses."""
    cells = []
    for row in content["results"]:
        if row["policy"] == "float":
            continue
        shown = (f"{row['accuracy']:.2f} %", f"{row['points_lost']:+.2f}", f"{row['divergence']:.5f}")
        widths = (f"{row['average_bits']:.2f}", f"{row['inputs']:.1f}", f"{row['bit_operations'] / 1e9:.2f}")
        cells.append([row["policy"], *widths, *shown, f"{row['predicted']:.5f}", f"{100 * row['clipped']:.2f} %"])
    head = ["policy", "bits a weight", "bits an input", "10^9 bit operations", "accuracy", "points lost", "divergence"]
    return "\n".join(table([*head, "predicted", "inputs clipped"], cells))


def in_short(content: Content, results: str) -> str:
    """Return one width everywhere beside what is decided at no more bit operations."""
    rows = {row["policy"]: row for row in content["results"]}
    cells = []
    for name in ("W8A8", "W4A8", "W4A4"):
        cells.append([f"{name} everywhere", *_shown(rows[name])])
        if mixed := rows.get(f"{name} BOPs, quadratic"):
            cells.append(["decided, at no more operations", *_shown(mixed)])
    head = ["", "bits a weight", "bits an input", "10^9 bit operations", "points lost", "divergence"]
    return "\n".join(table(head, cells))


def _shown(row: Content) -> list[str]:
    widths = [f"{row['average_bits']:.2f}", f"{row['inputs']:.1f}", f"{row['bit_operations'] / 1e9:.2f}"]
    return [*widths, f"{row['points_lost']:+.2f}", f"{row['divergence']:.5f}"]
