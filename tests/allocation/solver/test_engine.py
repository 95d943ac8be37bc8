"""The engine on plain arrays against brute force: unequal groups, several budgets, indefinite curvature, ties."""

from dataclasses import replace

import numpy as np
import pytest
from helpers.taylor_models import brute_force, random_problem
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lightning_mpq.allocation.solver import branch_and_bound
from lightning_mpq.allocation.solver.additive import InfeasibleProblemError
from lightning_mpq.allocation.solver.blocks import BlockStructure
from lightning_mpq.allocation.solver.clock import Clock
from lightning_mpq.allocation.solver.difference_form import difference_form
from lightning_mpq.allocation.solver.engine import solve
from lightning_mpq.allocation.solver.enumeration import all_selections
from lightning_mpq.allocation.solver.lagrangian import gilmore_lawler_bound
from lightning_mpq.allocation.solver.local_search import LocalSearch, first_selection, iterated_local_search
from lightning_mpq.allocation.solver.newton_path import convexify
from lightning_mpq.allocation.solver.problem import Problem
from lightning_mpq.allocation.status import SolveStatus


@pytest.fixture
def no_enumeration(monkeypatch):
    """Nodes are bounded and split to the end, so that the search is tested and not its shortcut."""
    monkeypatch.setattr(branch_and_bound, "_ENUMERABLE", 1)


def bounded(form, tolerance):
    """The best convexification of a form, whatever time that takes."""
    return convexify(form, Clock(np.inf), tolerance=tolerance)


def check_against_brute_force(problem, seed, gap):
    best = brute_force(problem)
    solver = "highs" if seed % 3 else "cbc"
    if np.isinf(best):
        with pytest.raises(InfeasibleProblemError):
            solve(problem, gap=gap, seed=seed, solver=solver)
        return
    solution = solve(problem, gap=gap, seed=seed, solver=solver)
    rounding = 1e-9 * max(abs(best), 1.0)
    assert problem.is_feasible(solution.selection)
    assert solution.value == problem.value(solution.selection)
    assert solution.status.is_proved
    assert solution.bound <= best + rounding
    assert best - rounding <= solution.value <= best + gap * abs(best) + rounding


@pytest.mark.parametrize("block", range(10))
@pytest.mark.usefixtures("no_enumeration")
def test_branch_and_bound_equals_brute_force(block):
    for seed in range(20 * block, 20 * block + 20):
        check_against_brute_force(random_problem(seed), seed, gap=0.0 if seed % 2 else 1e-3)


def test_with_enumerated_leaves_equals_brute_force():
    for seed in range(200, 300):
        check_against_brute_force(random_problem(seed), seed, gap=0.0)


@settings(max_examples=60)
@given(seed=st.integers(1000, 10**6), scale=st.sampled_from([1e-9, 1.0, 1e9]))
@example(seed=573504, scale=1e-9)  # prices and P are ten decades above the loss there
def test_bounds_hold_and_search_never_loses(seed, scale):
    problem = random_problem(seed)
    problem = replace(problem, gradient=problem.gradient * scale, curvature=problem.curvature * scale)
    best = brute_force(problem)
    allowed = problem.drop_unaffordable(np.ones(len(problem.group), dtype=bool))
    if np.isinf(best) or allowed is None:
        return
    rounding = 1e-9 * max(abs(best), scale)
    search = LocalSearch(problem, allowed)
    start = first_selection(problem, allowed, search)
    solution = solve(problem, gap=1e-6, start=start, seed=seed)
    assert problem.is_feasible(solution.selection)
    if start is not None:
        _, searched = iterated_local_search(search, start, np.random.default_rng(seed), kicks=3)
        assert problem.is_feasible(start)
        assert solution.value <= searched + 1e-6 * abs(best) + rounding
    assert gilmore_lawler_bound(problem, allowed) <= best + rounding
    form = difference_form(problem, allowed)
    if form.size:
        assert bounded(form, 1e-6 * max(abs(best), scale)).bound <= best + rounding


def test_the_cheap_bound_is_proved_where_there_is_no_time_for_more(monkeypatch):
    """Weak pairs: the eigenvalue shift is within percents where the bound of single groups is off by multiples."""
    random = np.random.default_rng(0)
    scores = random.normal(size=(64, 140)) * np.tile(2.0 ** -np.arange(7), 20)
    curvature = scores.T @ scores / 64
    group = np.repeat(np.arange(20), 7)
    curvature[group[:, None] != group] *= 0.1
    size = np.tile(np.arange(2.0, 9.0), 20)
    problem = Problem(np.zeros(140), curvature, group, size[None], np.array([70.0]), size)
    monkeypatch.setattr(branch_and_bound, "fits", lambda *_: False)
    found = solve(problem, gap=1e-6)
    assert found.nodes >= 1
    assert gilmore_lawler_bound(problem, np.ones(140, dtype=bool)) < 0.8 * found.value
    assert 0.95 * found.value < found.bound <= solve(problem, gap=1e-6, start=found.selection).value


def test_conditional_bounds_hold_for_every_candidate():
    """A candidate's conditional bound may not exceed the best selection that contains it."""
    checked = 0
    for seed in range(60):
        problem = replace(random_problem(seed), rows=np.zeros((0, len(random_problem(seed).group))), limits=np.zeros(0))
        form = difference_form(problem, np.ones(len(problem.group), dtype=bool))
        if not form.size:
            continue
        selections = all_selections(problem)
        values = np.array([problem.value(selection) for selection in selections])
        found = bounded(form, 1e-6 * float(np.abs(values).max()))
        for variable, candidate in enumerate(form.candidate):
            with_it = values[(selections == candidate).any(axis=1)].min()
            assert found.conditional[variable] <= with_it + 1e-8 * max(1, abs(with_it))
            checked += 1
        for block, group in enumerate(form.group):
            with_it = values[(selections == form.reference[group]).any(axis=1)].min()
            assert found.reference_conditional[block] <= with_it + 1e-8 * max(1, abs(with_it))
    assert checked > 300


def test_the_bound_can_be_recomputed_from_its_certificate():
    problem = random_problem(3, most_groups=8)
    form = difference_form(problem, np.ones(len(problem.group), dtype=bool))
    found = bounded(form, 1e-6)
    convex = form.quadratic.copy()
    BlockStructure(form.block).put(found.last.hessian, convex)
    assert np.linalg.eigvalsh(convex).min() > 0
    prices = found.last.multipliers
    shift = form.quadratic.diagonal() - convex.diagonal()
    point = np.linalg.solve(convex, -(form.linear + shift / 2 + prices @ form.rows))
    slope = convex @ point + form.linear + shift / 2 + prices @ form.rows
    least = sum(min(0.0, *slope[form.block == block]) for block in range(len(form.group)))
    bound = form.constant - prices @ form.limits - point @ convex @ point / 2 + least
    assert bound <= found.bound + 1e-9 * abs(found.bound)
    assert bound == pytest.approx(found.bound, rel=1e-4)


def test_convexification_is_tight_where_the_problem_is_convex_and_integral():
    """With no interaction between groups the relaxation is the additive problem itself, which has no gap."""
    random = np.random.default_rng(0)
    group = np.repeat(np.arange(6), 4)
    cost = random.normal(size=24)
    problem = Problem(cost, np.diag(random.uniform(1, 2, 24)), group, np.zeros((0, 24)), np.zeros(0), np.ones(24))
    form = difference_form(problem, np.ones(24, dtype=bool))
    best = problem.least(problem.additive_cost).sum()
    assert bounded(form, 1e-7).bound == pytest.approx(best, abs=1e-6)


def test_difference_form_has_the_objective_of_the_problem():
    for seed in range(20):
        problem = random_problem(seed)
        allowed = np.ones(len(problem.group), dtype=bool)
        form = difference_form(problem, allowed)
        for selection in all_selections(problem)[:50]:
            t = np.isin(form.candidate, selection).astype(float)
            value = t @ form.quadratic @ t / 2 + form.linear @ t + form.constant
            assert value == pytest.approx(problem.value(selection), abs=1e-9)
            assert (form.selection(t) == selection).all()


def test_local_search_keeps_its_state_exact():
    problem = random_problem(12)
    search = LocalSearch(problem)
    search.move_to(np.array(problem.start))
    random = np.random.default_rng(0)
    for _ in range(30):
        candidate = int(random.integers(len(problem.group)))
        expected = search.selection.copy()
        expected[problem.group[candidate]] = candidate
        change = search.changes()[candidate]
        before = problem.value(search.selection)
        search.replace(candidate)
        assert (search.selection == expected).all()
        assert problem.value(expected) - before == pytest.approx(change, abs=1e-9)
        assert search.value == pytest.approx(problem.value(expected), abs=1e-9)
        assert search.used == pytest.approx(problem.usage(expected))


def test_time_limits_are_named():
    problem = replace(random_problem(5, most_groups=6), rows=np.zeros((0, 0)), limits=np.zeros(0))
    problem = replace(problem, rows=np.zeros((0, len(problem.group))))
    assert solve(problem, gap=0.0).status is SolveStatus.OPTIMAL
    stopped = solve(problem, gap=0.0, time_limit=0.0)
    assert stopped.status in (SolveStatus.NO_TIME, SolveStatus.OPTIMAL)
    assert stopped.bound <= brute_force(problem) + 1e-9
