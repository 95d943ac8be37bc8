"""Other tools' scores on our candidates: our rounding, solver and repair, and nothing else of ours decides."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_mpq import (
    Budget,
    TaylorModel,
    allocate,
    find_groups,
    make_candidates,
    round_candidates,
)
from lightning_mpq import (
    quantize as follow,
)

from ....methods.additive_scores import additive_scores
from ....methods.clado import clado_matrix
from ....methods.weight_errors import weight_errors
from ..adapting import Found, run
from ..records import CannotError, Task
from .networks import float_network
from .ours import floats, packed

BITS = (2, 3, 4, 5, 6, 7, 8)
CLADO_BITS = (2, 4, 8)
"""The widths of its publication: pairs of more would take hours."""
CLADO_MOST = 3_000
"""Passes over the samples that are borne."""


def quantize(task: Task) -> Found:
    """Return the network by the option ``score``: a name in `additive_scores`, or "clado"."""
    score = task.options["score"]
    net = float_network(task)
    batches = list(task.inputs.split(task.batch))
    groups = find_groups(net, keep_float=floats(net, task))
    offered = make_candidates(groups, CLADO_BITS if score == "clado" else BITS, granularities=("channel",))
    pairs = len(CLADO_BITS) ** 2 * len(groups) * (len(groups) - 1) // 2
    if score == "clado" and pairs > CLADO_MOST:
        raise CannotError(f"{pairs:,} pairs of candidates, each a pass over all samples: more than {CLADO_MOST:,}")
    rounded = round_candidates(net, batches, groups, offered)
    nothing = torch.zeros(len(rounded.candidates), dtype=torch.float64)
    blank = TaylorModel(tuple(groups), rounded.candidates, nothing, torch.diag(nothing), "fisher", "divergence", 1)
    if score == "clado":
        matrix = _clado(net, task, blank, weight_errors(net, blank, rounded))
        model, objective = _with(blank, nothing, matrix), "quadratic"
    else:
        scores = additive_scores(net, task.batches(), blank, rounded, task.seed, task.loss)[score]
        model, objective = _with(blank, scores, blank.curvature), "additive"
    weights = sum(size.rows * size.columns for size in task.layers.values())
    budget = Budget(8 * task.budget_bytes / weights)
    policy = allocate(model, budget, objective=objective).policy  # type: ignore[arg-type]
    follow(net, policy, batches, rounded=rounded)
    return packed(net, task)


def _with(blank: TaylorModel, gradient: Tensor, curvature: Tensor) -> TaylorModel:
    own = (blank.groups, blank.candidates, gradient, curvature, blank.estimator, blank.loss, blank.samples)
    return TaylorModel(*own)


def _clado(net: nn.Module, task: Task, blank: TaylorModel, errors: list[Tensor]) -> Tensor:
    layers = {group.name: net.get_submodule(group.layers[0]).weight for group in blank.groups}
    batches = task.batches()

    def loss() -> float:
        found = [float(task.loss(net(inputs), targets)) * len(inputs) for inputs, targets in batches]
        return sum(found) / len(task.inputs)

    names = [candidate.group for candidate in blank.candidates]
    return clado_matrix(layers, names, errors, loss)  # type: ignore[arg-type]


if __name__ == "__main__":
    run(quantize, ["mip", "highspy"])
