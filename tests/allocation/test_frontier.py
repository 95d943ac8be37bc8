import builtins
import json

import pytest
from helpers.taylor_models import make_taylor

from lightning_mpq.allocation import Budget, Rules, allocate, frontier
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


@pytest.mark.parametrize("budgets", [4.0, "4", ["a"], [-1.0], [float("nan"), 5.0]])
def test_budgets_that_are_no_list_of_bounds_are_refused(budgets):
    with pytest.raises(ValueError, match="average_bits must be a (list|positive number)"):
        frontier(make_taylor(), average_bits=budgets)
