"""Policies near the optimum beside each other: a table."""

from __future__ import annotations

from ...tools.results import Content
from ...tools.selecting import grouped, mean_of
from .tables import table

LOSSES = {
    "predicted_loss": "predicted by our model",
    "profiled_loss": "as profiled",
    "repaired_loss": "statistics measured again",
    "packed_loss": "and rounded in sequence",
}
"""Columns of the result to what they are called."""


def block(content: Content, results: str) -> str:
    """Return the mean losses over draws of each policy, by budget."""
    cells = [
        [f"{budget:g}", policy, *(f"{mean_of(rows, key):.3g}" for key in LOSSES)]
        for (budget, policy), rows in grouped(content["results"], "budget", "policy").items()
    ]
    return "\n".join(table(["bits", "chosen by", *LOSSES.values()], cells))
