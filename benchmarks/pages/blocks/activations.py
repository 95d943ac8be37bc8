"""Policies over weights and inputs on test images, and the files that onnxruntime runs: two tables."""

from __future__ import annotations

from ...tools.results import Content
from .tables import table


def block(content: Content, results: str) -> str:
    """Return a row for each policy, and for each file in onnxruntime."""
    lines = table(
        [
            "policy", "bits of weights", "of inputs", "bits stored", "G operations of bits", "accuracy", "points lost",
            "divergence", "predicted",
        ],
        [
            [
                row["policy"], f"{row['weights']:.1f}", f"{row['inputs']:.1f}", f"{row['average_bits']:.2f}",
                "" if row["bit_operations"] is None else f"{row['bit_operations'] / 1e9:.3f}",
                f"{row['accuracy']:.2f} %", f"{row['points_lost']:+.2f}", f"{row['divergence']:.5f}",
                f"{row['predicted']:.5f}",
            ]
            for row in content["results"]
        ],
    )  # fmt: skip
    files = table(
        ["file in onnxruntime", "accuracy", "points lost", "divergence"],
        [
            [row["file"], f"{row['accuracy']:.2f} %", f"{row['points_lost']:+.2f}", f"{row['divergence']:.5f}"]
            for row in content["deployed"]
        ],
    )
    return "\n".join([*lines, *(["", *files] if content["deployed"] else [])])


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
