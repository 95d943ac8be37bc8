"""How well the loss is predicted: figure and table."""

from __future__ import annotations

from ...tools.results import Content
from ...tools.selecting import Rows, grouped, having
from .tables import table

_NAMES = {
    "fisher": "Fisher, all pairs (default)",
    "fisher, shrunk": "… shrunk by its noise (what the solver gets)",
    "fisher, diagonal": "Fisher, each layer alone",
    "gauss_newton": "Gauss-Newton, all pairs",
    "secant": "secant, all pairs",
    "hessian": "Hessian of the task loss, all pairs",
    "hawq": "mean Hessian trace x squared weight error (HAWQ-V2)",
    "output_error": "squared gradient x squared output error (as Model Optimizer)",
    "gradient_error": "absolute gradient x weight error (as AutoRound)",
    "weight_error": "squared weight error",
}


def block(content: Content, results: str) -> str:
    """Return the figure and a table of rank correlations."""
    rows = having(content["results"], policies="even")
    cases = grouped(rows, "rounding", "statistics")
    cells = []
    for name, title in _NAMES.items():
        found = [_cell(having(mine, predictor=name)) for mine in cases.values()]
        if any(found):
            cells.append([title, *found])
    head = [
        "Spearman's rank correlation; median of predicted / measured",
        *(", ".join(case).replace("_", " ") for case in cases),
    ]
    figure = f"![Predicted against measured divergence of random policies]({results}/fidelity.svg)"
    caption = "A point is the median of ten policies of like measured loss; eight of ten predictions lie in the band."
    return "\n".join([figure, "", caption, "", *table(head, cells)])


def _cell(rows: Rows) -> str:
    if not rows:
        return ""
    ratio = rows[0]["median_ratio"]
    return f"{rows[0]['spearman']:.2f}" + (f"; {ratio:.2f}" if ratio else "")
