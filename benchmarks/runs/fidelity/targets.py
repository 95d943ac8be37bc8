"""What was expected of the full matrix of the default estimator."""

from __future__ import annotations

from ...tools.selecting import Rows, having
from ...tools.targets import Target, at_least, between


def targets(rows: Rows) -> list[Target]:
    """Return the targets that summaries can answer."""
    found = []
    for row in having(rows, predictor="fisher"):
        where = f"{row['rounding']} rounding, {row['statistics']} statistics, {row['policies']} policies, fisher"
        found.append(at_least(f"{where}: Spearman over all policies", row["spearman"], 0.97))
        found.append(between(f"{where}: median of predicted / measured", row["median_ratio"], 0.6, 1.3))
    return found
