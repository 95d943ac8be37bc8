"""What would fail at the end of a fit, found out at its start: groups, budget, plan, and how the model is called."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ..allocation.preparation import Preparation
from ..curvature import TaylorModel
from ..curvature.estimators.registry import modelled_loss
from ..errors import NonFiniteError
from ..groups.candidates import make_candidates
from ..groups.groups import find_groups
from ..modules.convert import build_layers, empty_layer
from ..network.evaluator import Evaluator
from ..network.forward import forward_batch
from ..network.isolation import isolated
from ..network.layer_kinds import kind_of
from ..network.likelihood import guess_likelihood
from ..policy import BitPolicy
from .planning import Planner


def rehearse_plan(model: nn.Module, planner: Planner, policy: BitPolicy | None = None) -> None:
    """Refuse a plan that could not be made, or not be followed, for layers like these. Nothing is computed.

    Where weights are still to come (lazy layers) or are computed by something that may be taken away again (pruning,
    weight_norm), nobody can tell yet, and nothing is refused.

    Args:
        model: The float model, trained or not.
        planner: Knows what may be quantized, and the budget.
        policy: A plan to be followed instead.

    Raises:
        InfeasibleBudgetError: If a bound lies below the least possible cost.
        ValueError: If nothing can be quantized, or patterns, rules or the plan do not fit the model.
        TypeError: If the plan names a layer that cannot be packed.
    """
    if not all(_is_ready(layer) for layer in model.modules()):
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is worth a warning is said when the plan is made
        if policy is not None:
            build_layers(model, policy, empty_layer)
            return
        groups = find_groups(model, **planner.candidates.rules())
        candidates = make_candidates(groups, schemes=planner.candidates.offered_schemes())
        nothing = torch.zeros(len(candidates), dtype=torch.float64)
        taylor = TaylorModel(
            tuple(groups),
            tuple(candidates),
            nothing,
            nothing.expand(len(candidates), -1),
            estimator=planner.curvature.estimator,
            loss="task",
            samples=0,
            float_bytes=groups.float_bytes,
        )
        Preparation.make(taylor, planner.budget, planner.solver.rules)


def rehearse_call(model: nn.Module, batch: Any, planner: Planner) -> None:
    """Refuse a batch that the model could not be measured on; the model is left as it was.

    Args:
        model: The float model, trained or not.
        batch: A batch such as it will be calibrated on.
        planner: Knows how the model is called, and how its loss is measured.

    Raises:
        TypeError: If the model does not take the batch, or its outputs are no tensor of floats.
        ValueError: If nobody can tell what the outputs mean.
    """
    loss = modelled_loss(planner.curvature.estimator, planner.curvature.loss)
    with isolated(model), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if loss == "task":
            if planner.candidates.rounding != "nearest":
                forward_batch(model, batch, planner.forward_fn)
            return
        try:
            outputs = Evaluator(model, planner.forward_fn, planner.loss_fn).outputs(batch)
        except NonFiniteError:  # as an untrained model may well be
            return
        if planner.curvature.known_likelihood is None:
            guess_likelihood(outputs, batch)


def _is_ready(layer: nn.Module) -> bool:
    """Tell whether a layer's weights are those that will be quantized."""
    if any(parameter is not None and is_lazy(parameter) for parameter in layer._parameters.values()):
        return False
    return kind_of(layer) is None or "weight" in layer._parameters
