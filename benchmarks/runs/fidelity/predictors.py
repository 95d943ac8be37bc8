"""Everything that predicts what a policy costs: our Taylor models, their diagonals, and the scores of other tools."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from torch import Tensor, nn

from lightning_mpq import Categorical, TaylorModel, profile
from lightning_mpq.curvature import shrink
from lightning_mpq.curvature.shrinkage import between_groups
from lightning_mpq.groups.groups import LayerGroups
from lightning_mpq.rounding.rounded_weights import RoundedWeights

from ...methods.additive_scores import additive_scores
from ...problems.profiling_cases import task_loss
from ...tools.accuracy import Images

Predictor = Callable[[Sequence[int]], float]
"""The candidate of each group to the predicted loss, or score, of that policy."""


def taylor_models(
    model: nn.Module, batches: Images, groups: LayerGroups, rounded: RoundedWeights, statistics: str
) -> dict[str, TaylorModel]:
    """Return the Taylor model of every estimator, by its name.

    The hessian is left out where weights are rounded by the inputs of layers: rounding does not touch what it measures,
    and it takes as long as all others together.
    """
    nearest = all(candidate.scheme.weight.rounding == "nearest" for candidate in rounded.candidates)
    return {
        name: profile(
            model,
            batches,
            groups=groups,
            rounded=rounded,
            estimator=name,
            likelihood=Categorical(),
            statistics=statistics,  # type: ignore[arg-type]
            shrink=False,
            loss_fn=task_loss,
        )
        for name in ("fisher", "gauss_newton", "secant", *(("hessian",) if nearest else ()))
    }


def predictors_of(
    model: nn.Module, batches: Images, taylors: dict[str, TaylorModel], rounded: RoundedWeights, seed: int
) -> dict[str, Predictor]:
    """Return every predictor by name."""
    fisher = taylors["fisher"]
    found: dict[str, Predictor] = {}
    for name, taylor in taylors.items():
        found[name] = partial(_quadratic, taylor)
        found[f"{name}, diagonal"] = partial(_quadratic, _without_pairs(taylor))
    found["fisher, shrunk"] = partial(_quadratic, shrink(fisher))
    for name, scores in additive_scores(model, batches, fisher, rounded, seed).items():
        found[name] = partial(_sum, scores)
    return found


def _sum(scores: Tensor, chosen: Sequence[int]) -> float:
    return float(scores[list(chosen)].sum())


def _quadratic(taylor: TaylorModel, chosen: Sequence[int]) -> float:
    return taylor.predict(taylor.policy(chosen)).value


def _without_pairs(taylor: TaylorModel) -> TaylorModel:
    return replace(taylor, curvature=taylor.curvature.masked_fill(between_groups(taylor), 0.0), sums=None)
