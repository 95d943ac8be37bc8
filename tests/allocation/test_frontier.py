import builtins
import itertools
import json

import pytest
from helpers.taylor_models import make_taylor

from lightning_mpq.allocation import Budget, Rules, allocate, alternatives, frontier
from lightning_mpq.allocation.explanation import explain
from lightning_mpq.errors import InfeasibleBudgetError

SWEPT = [4.3, 4.6, 5.0, 5.5, 6.0, 7.5]


@pytest.fixture
def taylor():
    return make_taylor()


def test_every_point_of_the_frontier_is_what_allocate_finds(taylor):
    swept = frontier(taylor, average_bits=SWEPT, gap=0.0)
    alone = [allocate(taylor, Budget(average_bits=b), gap=0.0) for b in SWEPT]
    assert {plan.predicted_loss for plan in swept.points} <= {plan.predicted_loss for plan in alone}
    for plan in swept.points:
        assert plan.status.is_proved
        assert plan.lower_bound <= min(p.value for p in alone if p.costs["average_bits"] <= plan.costs["average_bits"])
    best_alone = {round(plan.predicted_loss, 12) for plan in alone}
    best_swept = {round(plan.predicted_loss, 12) for plan in (*swept.points, *swept.dominated)}
    assert best_alone == best_swept


def test_no_point_dominates_another(taylor):
    swept = frontier(taylor, average_bits=SWEPT)
    costs = [plan.costs["average_bits"] for plan in swept.points]
    losses = [plan.predicted_loss for plan in swept.points]
    assert costs == sorted(costs)
    assert losses == sorted(losses, reverse=True)
    assert len(set(losses)) == len(losses)
    assert len(swept.points) + len(swept.dominated) == len(SWEPT)


def test_bytes_can_be_swept_under_further_bounds_and_rules(taylor):
    swept = frontier(
        taylor, bytes=[300, 340, 400], budget=Budget(average_bits=6), rules=Rules(max_distinct_bits=2), gap=0.0
    )
    for plan in swept.points:
        assert plan.costs["average_bits"] <= 6
        assert plan.costs["bytes"] <= plan.limits["bytes"]
        assert len(set(plan.policy.bits().values())) <= 2


def test_frontier_writes_json_whole(taylor, tmp_path):
    swept = frontier(taylor, average_bits=SWEPT)
    swept.save(tmp_path / "frontier.json")
    content = json.loads((tmp_path / "frontier.json").read_text())
    assert [point["bits"] for point in content["points"]] == [plan.policy.bits() for plan in swept.points]
    assert [path.name for path in tmp_path.iterdir()] == ["frontier.json"]
    assert swept.table().row_count == len(swept.points)


def test_frontier_plots_what_it_holds(taylor):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    swept = frontier(taylor, average_bits=SWEPT)
    figure, axes = swept.plot()
    drawn = axes.lines[0].get_xydata().tolist()
    assert drawn == [[plan.costs["average_bits"], plan.predicted_loss] for plan in swept.points]
    assert swept.plot(ax=axes)[0] is figure


def test_plot_without_matplotlib_names_the_extra(taylor, monkeypatch):
    real_import = builtins.__import__

    def without_matplotlib(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError(name)
        return real_import(name, *args, **kwargs)

    swept = frontier(taylor, average_bits=[5.0])
    monkeypatch.setattr(builtins, "__import__", without_matplotlib)
    with pytest.raises(ModuleNotFoundError, match=r"lightning_mpq\[plots\]"):
        swept.plot()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "one of the two"),
        ({"average_bits": [3], "bytes": [3]}, "one of the two"),
        ({"average_bits": []}, "empty"),
        ({"average_bits": [5], "budget": Budget(average_bits=4)}, "must not bound average_bits"),
    ],
)
def test_frontier_arguments_are_checked(taylor, arguments, message):
    with pytest.raises(ValueError, match=message):
        frontier(taylor, **arguments)


def test_frontier_refuses_an_impossible_budget(taylor):
    with pytest.raises(InfeasibleBudgetError, match="least possible"):
        frontier(taylor, average_bits=[1.0, 5.0])


@pytest.mark.parametrize("min_changes", [1, 2, 3])
def test_alternatives_are_the_best_that_differ(taylor, min_changes):
    weights = sum(group.weight_count for group in taylor.groups)
    per_group = [[i for i, c in enumerate(taylor.candidates) if c.group == g.name] for g in taylor.groups]
    feasible = [
        chosen
        for chosen in itertools.product(*per_group)
        if sum(taylor.candidates[i].stored_bits for i in chosen) <= 5 * weights
    ]
    feasible.sort(key=lambda chosen: taylor.predict(taylor.policy(chosen)).value)
    expected = []
    for chosen in feasible:
        if all(sum(a != b for a, b in zip(chosen, other, strict=True)) >= min_changes for other in expected):
            expected.append(chosen)
    plans = alternatives(taylor, Budget(average_bits=5), 4, min_changes=min_changes, gap=0.0)
    losses = [taylor.predict(taylor.policy(chosen)).value for chosen in expected[:4]]
    assert [plan.predicted_loss for plan in plans] == pytest.approx(losses)
    assert [plan.policy for plan in plans] == [taylor.policy(chosen) for chosen in expected[:4]]
    assert all(set(plan.prices) == {"average_bits"} for plan in plans)
    known = [plan.policy for plan in plans[:2]]
    others = alternatives(taylor, Budget(average_bits=5), 2, min_changes=min_changes, apart_from=known, gap=0.0)
    assert [plan.policy for plan in others] == [plan.policy for plan in plans[2:]]


def test_alternatives_end_when_there_are_no_more():
    taylor = make_taylor(groups=2, bits=[2, 3])
    assert len(alternatives(taylor, Budget(average_bits=100), 9)) == 4
    every = [plan.policy for plan in alternatives(taylor, Budget(average_bits=100), 4)]
    assert alternatives(taylor, Budget(average_bits=100), 9, apart_from=every) == []
    with pytest.raises(ValueError, match="at least 1"):
        alternatives(taylor, Budget(average_bits=100), 0)
    with pytest.raises(ValueError, match="breaks the rules; pass the rules"):
        alternatives(taylor, Budget(average_bits=100), rules=Rules(min_bits={"*": 3}), apart_from=every)


def test_explanations_are_differences_of_predictions(taylor):
    plan = allocate(taylor, Budget(average_bits=5), gap=0.0)
    explanation = explain(plan, pairs=3)
    scheme_of = {(c.group, c.scheme.bits): c.scheme for c in taylor.candidates}
    total = 0.0
    for reason in explanation.groups:
        (name,) = reason.groups
        assert reason.bits == plan.policy[name].bits
        total += (reason.alone + reason.together) / 2
        for step in (reason.narrower, reason.wider):
            if step is None:
                continue
            moved = dict(plan.policy) | {name: scheme_of[name, step.bits]}
            assert step.loss == pytest.approx(taylor.predict(moved).value - plan.predicted_loss, abs=1e-9)
            group = next(g for g in taylor.groups if g.name == name)
            bits = group.stored_bits(moved[name]) - group.stored_bits(plan.policy[name])
            assert step.costs["bytes"] == bits / 8
            kept = plan.costs["average_bits"] + step.costs["average_bits"] <= 5 + 1e-12
            assert step.fits == kept
            if step.fits:
                assert step.loss >= -1e-9  # else the plan would not be the best
    assert total == pytest.approx(plan.predicted_loss)
    assert len(explanation.pairs) == 3
    strengths = [abs(loss) for _, _, loss in explanation.pairs]
    assert strengths == sorted(strengths, reverse=True)
    for name in plan.policy:
        assert name in str(explanation)
    json.dumps(explanation.to_dict(), allow_nan=False)


def test_prices_foretell_what_a_little_more_budget_saves():
    """The price of a budget is the slope of the relaxation, so the bound moves by about price times change."""
    taylor = make_taylor(groups=10, seed=1)
    plans = [allocate(taylor, Budget(average_bits=b), gap=1e-4) for b in (4.5, 5.5)]
    saved = plans[0].predicted_loss - plans[1].predicted_loss
    assert plans[1].prices["average_bits"] * 0.5 <= saved <= plans[0].prices["average_bits"] * 2


def test_tied_groups_are_explained_together(taylor):
    plan = allocate(taylor, Budget(average_bits=5), rules=Rules(block_depth=1))
    assert [len(reason.groups) for reason in explain(plan).groups] == [2, 2]


@pytest.mark.parametrize("multiple", [0.5, 2.0, 10.0])
def test_robust_plans_lower_the_robust_objective(multiple):
    taylor = make_taylor(seed=3, errors=True)
    nominal = allocate(taylor, Budget(average_bits=5), gap=0.0)
    plan = allocate(taylor, Budget(average_bits=5), gap=0.0, robust=multiple)
    details = plan.details["robust"]

    def robust(policy):
        return taylor.predict(policy).value + multiple * taylor.prediction_error(policy)

    assert details["objective"] == pytest.approx(robust(plan.policy))
    assert details["nominal_objective"] == pytest.approx(robust(nominal.policy))
    assert details["objective"] <= details["nominal_objective"] + 1e-9
    assert details["changed_groups"] == [n for n in plan.policy if plan.policy[n] != nominal.policy[n]]
    assert plan.value == pytest.approx(robust(plan.policy), rel=1e-6)
    assert plan.lower_bound <= robust(nominal.policy)
    json.dumps(plan.to_dict(), allow_nan=False)


def test_robust_needs_errors_and_a_quadratic_objective(taylor):
    with pytest.raises(ValueError, match="needs standard errors"):
        allocate(taylor, Budget(average_bits=5), robust=1.0)
    with pytest.raises(ValueError, match="quadratic objective"):
        allocate(taylor, Budget(average_bits=5), robust=1.0, objective="additive")
    with pytest.raises(ValueError, match="robust must be"):
        allocate(taylor, Budget(average_bits=5), robust=-1.0)
