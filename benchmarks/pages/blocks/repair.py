"""What each repair gains, and what blocks of columns gain as candidates: two tables."""

from __future__ import annotations

from ...tools.results import Content
from ...tools.selecting import Rows, grouped, having, mean
from .tables import table

_WAYS = {
    "as rounded by float inputs": ("independent", False),
    "repaired": ("independent", True),
    "rounded in sequence": ("sequential", False),
    "in sequence and repaired": ("sequential", True),
}


def block(content: Content, results: str) -> str:
    """Return means over seeds."""
    rows = content["results"]
    repairs = []
    for (network, policy), mine in grouped(having(rows, compared="repair"), "network", "policy").items():
        found = ([r for r in mine if (r["rounding"], bool(r["repaired"])) == way] for way in _WAYS.values())
        repairs.append([f"{network}, {policy}", *map(_held_out, found)])
    lines = table(["divergence (points lost)", *_WAYS], repairs)
    several = having(rows, compared="granularity")
    offers = [offered for (offered,) in grouped(several, "offered")]
    granularities = []
    for (network, budget), mine in grouped(several, "network", "budget").items():
        cells = [_held_out(having(mine, offered=offered)) for offered in offers]
        in_blocks = f"{max(row['groups_in_blocks'] for row in mine)} of {mine[0]['groups']}"
        granularities.append([f"{network}, {budget:g} bits", *cells, in_blocks])
    if granularities:
        head = ["scales offered as candidates", *offers, "groups that take blocks"]
        lines += ["", *table(head, granularities)]
    return "\n".join(lines)


def _held_out(rows: Rows) -> str:
    if not rows:
        return ""
    divergence, lost = (mean(row["held_out"][key] for row in rows) for key in ("divergence", "points_lost"))
    return f"{divergence:.4f} ({lost:+.2f})"
