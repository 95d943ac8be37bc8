"""What would fail at the end of a fit, found out at its start: groups, budget, policy, and how the model is called."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from dataclasses import replace

import torch
from torch import nn

from ..allocation.feasibility import check_budget
from ..curvature.estimators.registry import estimator_named, modelled_loss
from ..errors import InfeasibleBudgetError, NonFiniteError
from ..groups.choices import Choices
from ..groups.coverage import Coverage
from ..groups.groups import LayerGroups
from ..modules import packed_layers
from ..modules.twins import build_layers, empty_layer
from ..modules.workload import measured as with_workload
from ..network.calibration import Calibration
from ..network.evaluator import Evaluator
from ..network.guessed_likelihood import guess_likelihood
from ..network.isolation import isolated
from ..network.layer_kinds import kind_of
from ..network.lazy import uninitialized_layer
from ..network.placement import refuse_spread
from ..policy import BitPolicy
from ..targets import offer
from ..targets.menu import refuse_policy
from ..tools.process_wide import quiet
from .settings import JobSettings


def check_policy(
    model: nn.Module, settings: JobSettings, policy: BitPolicy | None = None, *, budget: bool = True
) -> Coverage | None:
    """Refuse a job that could not be done, or a policy that could not be followed. Nothing is computed.

    Where weights are still to come (lazy layers) or are computed by something that may be taken away again (pruning,
    weight_norm), nobody can tell yet, and nothing is refused.

    Args:
        model: The float model, trained or not.
        settings: What is wanted.
        policy: A policy to be followed instead.
        budget: Whether the budget is checked as if all weights were used; see `check_budget_of`.

    Returns:
        How many of the model's parameters will be quantized; None where nobody can tell yet, or the policy says it.

    Raises:
        InfeasibleBudgetError: If a bound lies below the least possible cost.
        ValueError: If the model is packed already, nothing can be quantized, or patterns, rules or the policy do not
            fit the model.
        TypeError: If the policy names a layer that cannot be packed.
    """
    refuse_packed(model)
    refuse_spread(model)
    if uninitialized_layer(model) is not None or not all(map(_is_ready, model.modules())):
        return None
    with quiet():  # what is worth a warning is said when the policy is made
        if policy is not None:
            build_layers(model, policy, empty_layer)
            refuse_policy(settings.target, model, policy)
            return None
        groups, choices = _choices(model, settings)
        with nullcontext() if budget else suppress(InfeasibleBudgetError):
            check_budget(choices, settings.budget, settings.solver.rules)
    return groups.coverage


def refuse_packed(model: nn.Module) -> None:
    """Refuse a model that is quantized already.

    Raises:
        ValueError: If it is.
    """
    if packed := packed_layers(model):
        raise ValueError(
            f"The model is quantized already (layer {next(iter(packed))!r} is packed); start from the float model."
        )


def check_budget_of(calibration: Calibration, settings: JobSettings) -> None:
    """Refuse a budget that no policy keeps, whether or not what one batch does not use will be quantized.

    Args:
        calibration: The float model, trained or not, and a batch such as it will be calibrated on.
        settings: What is wanted.

    Raises:
        InfeasibleBudgetError: If a bound lies below the least possible cost.
    """
    settings = _with_workload(calibration, settings)
    try:
        check_policy(calibration.model, settings)
    except InfeasibleBudgetError:
        with suppress(TypeError, ValueError), quiet():  # it may take calibration batches alone
            _, choices = _choices(calibration.model, settings, calibration if settings.calls_forward else None)
            check_budget(choices, settings.budget, settings.solver.rules)
            return
        raise


def _with_workload(calibration: Calibration, settings: JobSettings) -> JobSettings:
    """Return the same with what a forward pass takes, where the budget asks for it and the batch tells."""
    with suppress(TypeError, ValueError), quiet():  # it is asked again, and answers, when the policy is made
        groups, candidates = offer(settings.target, calibration.model, settings.candidates)
        budget = with_workload(settings.budget, calibration.model, calibration, groups, candidates)
        return replace(settings, budget=budget)
    return settings


def _choices(
    model: nn.Module, settings: JobSettings, batches: Calibration | None = None
) -> tuple[LayerGroups, Choices]:
    groups, candidates = offer(settings.target, model, settings.candidates, batches)
    return groups, Choices(tuple(groups), candidates, groups.float_bytes)


def check_call(calibration: Calibration, settings: JobSettings, policy: BitPolicy | None = None) -> None:
    """Refuse a batch that the model could not be measured on; the model is left as it was.

    Args:
        calibration: The float model, trained or not, and a batch such as it will be calibrated on.
        settings: What is wanted.
        policy: A policy to be followed; the model is then called for its rounding and repair only.

    Raises:
        TypeError: If the model does not take the batch, or its outputs are no tensor of floats.
        ValueError: If nobody can tell what the outputs mean.
    """
    batch = next(calibration.filled(), None)
    if batch is None:
        return
    estimator = estimator_named(settings.curvature.estimator)
    loss = modelled_loss(estimator, settings.curvature.loss)
    with isolated(calibration.model), torch.no_grad(), quiet():
        if policy is not None:
            by_inputs = any(scheme.needs_inputs for scheme in policy.weights().values())
            if by_inputs or policy.inputs() or settings.repair.biases:
                calibration.forward(batch)
            return
        if not estimator.asks_for_likelihood(loss):
            if settings.candidates.rounding != "nearest":
                calibration.forward(batch)
            return
        try:
            evaluator = Evaluator(calibration)
            outputs = evaluator.outputs(batch)
        except NonFiniteError:  # as an untrained model may well be
            return
        if calibration.likelihood is None:
            guess_likelihood(outputs, batch, evaluator.output_name)


def _is_ready(layer: nn.Module) -> bool:
    """Tell whether a layer's weight is the one that will be quantized, and not computed from others."""
    return kind_of(layer) is None or "weight" in layer._parameters
