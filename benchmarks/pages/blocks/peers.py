"""Other quantizers beside this package: a table a network, and who could not do it."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import geometric_mean
from typing import Any

from ...tools.peers import OURS, OWN_CANDIDATES, over_ours
from ...tools.quality import BETTER_ABOVE
from ...tools.results import Content
from ...tools.selecting import Rows, grouped, having, mean_of, spread
from .tables import table

_QUALITY = ("accuracy", *BETTER_ABOVE, "perplexity")


def block(content: Content, results: str) -> str:
    """Return a table of all peers for each network: loss, quality, bytes, and the time that they take."""
    rows = content["results"]
    parts = [f"![Loss against stored bytes, this package and its peers]({results}/peers.svg)", ""]
    for (network,), every in grouped(rows, "network").items():
        answered = {row["budget"] for row in every if row["unseen_loss"] is not None}
        own = [row for row in every if row["budget"] in answered]
        if not own:
            continue
        seeds = {row["seed"] for row in own if row["unseen_loss"] is not None}
        draws = f"{len(seeds)} draws of samples where a deviation stands" if len(seeds) > 1 else "one draw of samples"
        figure = next(key for key in _QUALITY if any(row[key] is not None for row in own))
        parts.append(f"{network}, {draws}: loss on unseen samples ({figure}) in bytes of the quantized layers\n")
        parts += [*_table(own, figure), ""]
        parts += _reasons(own)
    return "\n".join(parts).rstrip()


def in_short(content: Content, results: str) -> str:
    """Return, for each network and budget, the best of the other quantizers and the best of other tools' scores."""
    cells = []
    for (network,), of_network in grouped(content["results"], "network").items():
        for (budget,), own in sorted(grouped(of_network, "budget").items()):
            ours = [row for row in having(own, peer=OURS) if row["unseen_loss"] is not None]
            ratios = over_ours(own)
            if ours and ratios:
                scores = {peer: ratio for peer, ratio in ratios.items() if peer.endswith(OWN_CANDIDATES)}
                others = {peer: ratio for peer, ratio in ratios.items() if peer not in scores}
                loss, bytes_ = f"{mean_of(ours, 'unseen_loss'):.3g}", f"{mean_of(ours, 'stored_bytes') / 1000:,.0f}"
                cells.append([network, f"{budget:g}", str(len(ours)), bytes_, loss, _best(others), _best(scores)])
    titles = ["network", "bits", "draws", "kB", "our loss", "best other quantizer", "best other score, our candidates"]
    return "\n".join(table(titles, cells))


def _best(ratios: Mapping[str, float]) -> str:
    if not ratios:
        return ""
    name = min(ratios, key=lambda peer: ratios[peer])
    return f"{name.removesuffix(OWN_CANDIDATES)}: {ratios[name]:.3g} times"


def _table(rows: Rows, figure: str) -> list[str]:
    budgets = sorted({row["budget"] for row in rows})
    cells = []
    for (peer,), own in grouped(rows, "peer").items():
        if any(row["unseen_loss"] is not None for row in own):
            cells.append([peer, *(_cell(having(own, budget=budget), figure) for budget in budgets), _times(own, rows)])
    return table(["", *(f"{budget:g} bits" for budget in budgets), "processor time over ours"], cells)


def _cell(rows: Rows, figure: str) -> str:
    found = [row for row in rows if row["unseen_loss"] is not None]
    if not found:
        return ""
    deviation = spread([row["unseen_loss"] for row in found])
    plus = f" ± {deviation:.1g}" if len(found) > 1 else ""
    return f"{mean_of(found, 'unseen_loss'):.3g}{plus} ({mean_of(found, figure):.3f}) {found[0]['stored_bytes']:,}"


def _times(rows: Rows, every: Rows) -> str:
    ratios = []
    for row in rows:
        ours = having(every, peer=OURS, seed=row["seed"], budget=row["budget"])
        if ours and _seconds(row) and _seconds(ours[0]):
            ratios.append(_seconds(row) / _seconds(ours[0]))
    return f"{geometric_mean(ratios):.2g}" if ratios else ""


def _seconds(row: Mapping[str, Any]) -> float:
    return float(row["processor_seconds"] or 0.0)


def _reasons(rows: Rows) -> list[str]:
    lines = []
    for (peer, cannot, refused), own in grouped(rows, "peer", "cannot", "refused").items():
        budgets = ", ".join(f"{budget:g}" for budget in sorted({row["budget"] for row in own}))
        if cannot:
            lines.append(f"- {peer}: {cannot}")
        elif refused:
            lines.append(f"- {peer}, {budgets} bits: refused: {refused}")
    return [*lines, ""] if lines else []
