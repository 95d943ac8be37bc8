"""What stages of jobs on language models take: a table of memory and of time."""

from __future__ import annotations

from ...tools.results import Content
from .tables import table


def block(content: Content, results: str) -> str:
    """Return a row for each model and stage; memory in times the float weights, the model itself being one of them."""
    rows = []
    for row in content["results"]:
        said = row["estimated_bytes"]
        rows.append(
            [
                f"{row['shape']}, {row['dtype']}",
                row["stage"],
                f"{row['peak_bytes'] / 2**20:,.0f}",
                f"{row['peak_bytes'] / row['weight_bytes']:.1f}",
                "" if said is None else f"{said / row['peak_bytes']:.2f}",
                f"{row['cpu_seconds']:.1f}",
                f"{row['ns_a_weight_and_token']:.2f}",
            ]
        )
    head = ["model", "stage", "peak, MiB", "times the weights", "estimate over it", "CPU s", "ns a weight and token"]
    return "\n".join(table(head, rows, left=2))
