"""What several hundred predicted and measured losses come to: correlations, quantiles of ratios, binned points."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from scipy.stats import spearmanr
from torch import Tensor

from ...methods.additive_scores import UNITLESS
from ...tools.results import Row
from ...tools.selecting import Rows, grouped

KEYS = ("rounding", "statistics", "policies")
DRAWN = ("fisher", "fisher, diagonal")
BIN = 10


def summaries(policies: Rows) -> list[Row]:
    """Return rank correlations of each predictor, and how its predictions compare in size.

    Scores without the unit of a loss have rank correlations only. "Better half": the policies of lower measured loss.
    """
    rows: list[Row] = []
    for key, mine in grouped(policies, *KEYS).items():
        for name in mine[0]["predicted"]:
            measured, predicted = _points(mine, name)
            better = measured.argsort()[: len(mine) // 2]
            row: Row = {
                **dict(zip(KEYS, key, strict=True)),
                "predictor": name,
                "target": target_of(name),
                "count": len(mine),
                "spearman": float(spearmanr(predicted, measured).statistic),
                "spearman_better_half": float(spearmanr(predicted[better], measured[better]).statistic),
            }
            if name not in UNITLESS:
                ratios = predicted / measured
                row["median_ratio"] = float(ratios.median())
                row["median_ratio_better_half"] = float(ratios[better].median())
                row |= {f"ratio_{share:.0%}": value for share, value in _quantiles(ratios, (0.05, 0.25, 0.75, 0.95))}
            rows.append(row)
    return rows


def curves(policies: Rows) -> list[Row]:
    """Return predicted against measured loss of `DRAWN`, for the figure: bins of ten policies of like measured loss."""
    rows: list[Row] = []
    for (rounding, statistics), mine in grouped(policies, *KEYS[:2]).items():
        for name in DRAWN:
            measured, predicted = _points(mine, name)
            order = measured.argsort()
            for chosen in order.split(BIN):
                row: Row = {"rounding": rounding, "statistics": statistics, "predictor": name, "count": len(chosen)}
                row["measured"] = float(measured[chosen].median())
                row |= {f"predicted_{share:.0%}": v for share, v in _quantiles(predicted[chosen], (0.1, 0.5, 0.9))}
                rows.append(row)
    return rows


def target_of(predictor: str) -> str:
    """Return what a predictor is to predict."""
    return "task_loss" if predictor.startswith("hessian") else "divergence"


def _points(policies: Rows, predictor: str) -> tuple[Tensor, Tensor]:
    """Return measured and predicted losses, [policies] each."""
    target = target_of(predictor)
    measured = torch.tensor([policy[target] for policy in policies])
    return measured, torch.tensor([policy["predicted"][predictor] for policy in policies])


def _quantiles(values: Tensor, shares: Iterable[float]) -> list[tuple[float, float]]:
    return [(share, float(values.quantile(share))) for share in shares]
