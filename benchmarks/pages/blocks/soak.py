"""What rough handling broke: one table."""

from __future__ import annotations

from ...tools.results import Content
from .tables import table


def block(content: Content, results: str) -> str:
    """Return a row for each kind of file and call."""
    rows = [[row["campaign"], row["what"], f"{row['tried']:,}", str(row["faults"])] for row in content["results"]]
    return "\n".join(table(["campaign", "of", "tried", "faults"], rows))
