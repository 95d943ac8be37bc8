"""Small random Taylor models that the allocation tests share, and their best plans by trying all."""

import itertools

import numpy as np
import pytest
import torch
from helpers.profiles import nearest_candidates

from lightning_mpq.allocation import allocate
from lightning_mpq.allocation.solver.problem import Problem
from lightning_mpq.curvature.taylor_model import TaylorModel
from lightning_mpq.groups.candidates import make_candidates
from lightning_mpq.groups.groups import LayerGroup
from lightning_mpq.schemes import WeightScheme


def make_taylor(groups=4, bits=range(2, 6), seed=0, indefinite=False, scale=1.0, names=None, errors=False, **fields):
    """A random Taylor model: perturbations shrink by 2 per bit and share a few directions between groups."""
    random = np.random.default_rng(seed)
    names = names or [f"block{i // 2}.layer{i}" for i in range(groups)]
    shapes = [(int(random.integers(2, 9)), int(random.integers(3, 40))) for _ in names]
    layer_groups = tuple(LayerGroup(name, (name,), (shape,)) for name, shape in zip(names, shapes, strict=True))
    candidates = nearest_candidates(layer_groups, bits=bits)
    width = np.array([c.scheme.bits for c in candidates])
    size = np.array([next(g.weight_count for g in layer_groups if g.name == c.group) for c in candidates])
    noise = random.normal(size=(24, len(candidates))) + 2 * random.normal(size=(24, 1))
    curvature = noise.T @ noise / 24
    if indefinite:
        bump = random.normal(size=curvature.shape)
        curvature += 2 * (bump + bump.T)
    step = np.sqrt(size) * 2.0 ** (2 - width)
    curvature *= np.outer(step, step) * scale
    gradient = random.normal(size=len(candidates)) * step**2 * scale if indefinite else np.zeros(len(candidates))
    if errors:
        fields["gradient_error"] = torch.full((len(candidates),), 0.1 * scale)
        fields["curvature_error"] = torch.tensor(np.outer(step, step) * 0.3 * scale)
    return TaylorModel(
        layer_groups,
        candidates,
        torch.tensor(gradient),
        torch.tensor((curvature + curvature.T) / 2),
        fields.pop("estimator", "hessian"),
        "task",
        24,
        **fields,
    )


def taylor_of(groups, candidates):
    """A Taylor model of real groups: every group errs alone, by less the more bits it has."""
    bits = torch.tensor([float(candidate.scheme.bits) for candidate in candidates], dtype=torch.float64)
    weights = {group.name: group.weight_count for group in groups}
    size = torch.tensor([float(weights[candidate.group]) for candidate in candidates], dtype=torch.float64)
    curvature = torch.diag(size * 4.0**-bits)
    nothing = torch.zeros(len(candidates))
    return TaylorModel(
        tuple(groups), tuple(candidates), nothing, curvature, "fisher", "divergence", 1, float_bytes=groups.float_bytes
    )


def additive_taylor(costs, bits):
    """A Taylor model whose only content is what each candidate costs alone: ``costs`` [group][candidate]."""
    names = [f"layer{number:02d}" for number in range(len(costs))]
    groups = tuple(LayerGroup(name, (name,), ((1, 8),)) for name in names)
    schemes = {name: [WeightScheme(b) for b in bits[: len(row)]] for name, row in zip(names, costs, strict=True)}
    flat = torch.tensor([value for row in costs for value in row], dtype=torch.float64)
    candidates = make_candidates(groups, schemes=schemes)
    return TaylorModel(groups, candidates, flat, torch.zeros(len(flat), len(flat)), "hessian", "task", 1)


def random_problem(seed, most_groups=6, most_candidates=5):
    """A small random problem: PSD, indefinite, badly scaled, tied or concave; 0 to 3 budgets, some exactly tight."""
    random = np.random.default_rng(seed)
    counts = random.integers(1, most_candidates + 1, int(random.integers(1, most_groups + 1)))
    group = np.repeat(np.arange(len(counts)), counts)
    size = len(group)
    factor = random.normal(size=(int(random.integers(1, 12)), size))
    curvature = factor.T @ factor
    gradient = random.normal(size=size) * (seed % 2) * 3
    family = seed % 5
    if family == 1:
        noise = random.normal(size=(size, size))
        curvature = 0.2 * curvature + noise + noise.T
    elif family == 2:
        shrink = 2.0 ** -random.integers(0, 8, size)
        curvature = curvature * np.outer(shrink, shrink)
    elif family == 3:
        curvature, gradient = np.round(curvature), np.round(gradient)
    elif family == 4:
        curvature = -curvature
    rows = random.integers(0, 20, (int(random.integers(0, 4)), size)).astype(float)
    if seed % 7 == 0:
        rows = rows * 1e8 + random.integers(0, 100, rows.shape)
    starts = np.searchsorted(group, np.arange(len(counts)))
    least = np.minimum.reduceat(rows, starts, axis=1).sum(axis=1)
    most = np.maximum.reduceat(rows, starts, axis=1).sum(axis=1)
    limits = least if seed % 11 == 0 else np.floor(least + (most - least) * random.uniform(0, 1, len(rows)))
    return Problem(gradient, curvature, group, rows, limits, random.integers(1, 100, size) * 8.0)


def brute_force(problem):
    """Least objective over every feasible selection, by a plain loop; inf if there is none."""
    choices = [np.flatnonzero(problem.group == group) for group in range(problem.group_count)]
    best = np.inf
    for chosen in itertools.product(*choices):
        x = np.zeros(len(problem.group))
        x[list(chosen)] = 1
        if np.all(problem.rows @ x <= problem.limits):
            best = min(best, float(problem.gradient @ x + x @ problem.curvature @ x / 2))
    return best


def every_plan(taylor):
    per_group = [[i for i, c in enumerate(taylor.candidates) if c.group == g.name] for g in taylor.groups]
    return [taylor.policy(chosen) for chosen in itertools.product(*per_group)]


def stored_bits(taylor, policy):
    return sum(group.stored_bits(policy[group.name]) for group in taylor.groups)


def best_plan(taylor, keeps):
    """The plan of least predicted loss among all that a predicate keeps."""
    return min((p for p in every_plan(taylor) if keeps(p)), key=lambda p: taylor.predict(p).value)


def check_best(taylor, budget, keeps, **options):
    plan = allocate(taylor, budget, gap=0.0, **options)
    expected = best_plan(taylor, keeps)
    assert keeps(plan.policy)
    assert plan.predicted_loss == pytest.approx(taylor.predict(expected).value, rel=1e-9)
    return plan
