"""Result files: written and read, small, and what their summaries say of points whose answer is known."""

import json
import math

import pytest
import torch

from benchmarks.runs.fidelity.summary import BIN, curves, summaries
from benchmarks.runs.held_out.summary import summaries as held_out_summaries
from benchmarks.tools.results import RESULTS, read_results, write_results
from benchmarks.tools.targets import ORIGINS, at_least, at_most, between

NAMES = sorted(path.stem for path in RESULTS.glob("*.json"))


def test_rows_come_back_as_they_were_written(tmp_path):
    rows = [{"way": "a", "loss": 0.1, "bits": [2, 3]}, {"way": "b", "note": {"x": None}}]
    target = at_most("loss", 0.1, 0.2, "chance")
    path = write_results(
        "name", settings={"seed": 0}, results=rows, targets=[target], output=tmp_path / "name.json", empty=[]
    )
    content = read_results("name", tmp_path)
    assert content["results"] == [
        {"way": "a", "loss": 0.1, "bits": [2, 3], "note": None},
        {"way": "b", "loss": None, "bits": None, "note": {"x": None}},
    ]
    assert content["targets"] == [vars(target)]
    assert content["settings"] == {"seed": 0}
    assert content["empty"] == []
    assert json.loads(path.read_text())["results"]["columns"] == ["way", "loss", "bits", "note"]


def test_what_is_no_number_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_results("name", settings={}, results=[{"loss": math.nan}], output=tmp_path / "name.json")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_committed_results_are_summaries_that_say_whose_bounds_are_theirs(name):
    assert (RESULTS / f"{name}.json").stat().st_size < 80_000
    content = read_results(name)
    assert content["results"]
    assert content["environment"]["commit"]
    assert {target["origin"] for target in content["targets"]} <= set(ORIGINS)


@pytest.mark.parametrize(
    ("target", "bound", "met"),
    [
        (at_most("x", 0.5, 0.5), "<= 0.5", True),
        (at_most("x", 0.51, 0.5), "<= 0.5", False),
        (at_least("x", 0.49, 0.5, note=" (why)"), ">= 0.5 (why)", False),
        (between("x", 1.3, 0.6, 1.3), "0.6 .. 1.3", True),
        (between("x", 0.5, 0.6, 1.3), "0.6 .. 1.3", False),
    ],
)
def test_targets(target, bound, met):
    assert (target.bound, target.met) == (bound, met)


def policies(count=40):
    """Return policies whose loss one predictor overrates by a half, one ranks backwards, and one is no loss."""
    measured = torch.linspace(0.1, 1.0, count).tolist()
    return [
        {
            "rounding": "nearest",
            "statistics": "frozen",
            "policies": "even",
            "divergence": loss,
            "task_loss": 2 * loss,
            "predicted": {
                "fisher": 1.5 * loss,
                "fisher, diagonal": loss,
                "hessian": 2 * loss,
                "weight_error": -loss,
            },
        }
        for loss in measured
    ]


def test_fidelity_of_known_points():
    rows = {row["predictor"]: row for row in summaries(policies())}
    assert rows["fisher"]["spearman"] == pytest.approx(1)
    assert rows["weight_error"]["spearman_better_half"] == pytest.approx(-1)
    for name in ("median_ratio", "median_ratio_better_half", "ratio_5%", "ratio_95%"):
        assert rows["fisher"][name] == pytest.approx(1.5)
        assert rows["hessian"][name] == pytest.approx(1)  # compared with the task loss
        assert name not in rows["weight_error"]  # which is not in nats
    assert {row["count"] for row in rows.values()} == {40}


def test_curves_hold_every_policy_once_in_order_of_the_measured_loss():
    rows = [row for row in curves(policies(43)[::-1]) if row["predictor"] == "fisher"]
    assert [row["count"] for row in rows] == [BIN] * 4 + [3]
    assert [row["measured"] for row in rows] == sorted(row["measured"] for row in rows)
    assert all(row["predicted_10%"] <= row["predicted_50%"] <= row["predicted_90%"] for row in rows)


def test_held_out_differences_add_the_chance_of_draws_to_that_of_images():
    draws = [
        {
            "network": "n", "rounding": "r", "statistics": "s", "samples": 8, "budget": 3.0, "seed": seed,
            "divergence": {"quadratic": loss, "unshrunk": 1.0, "additive": 1.0},
            "difference_error": {"quadratic": 0.3, "unshrunk": 0.0},
            "bits": {"quadratic": [2, 2 + seed], "additive": [2, 2]},
        }
        for seed, loss in enumerate((0.5, 0.7))
    ]  # fmt: skip
    [row] = held_out_summaries(draws)
    assert row["quadratic_over_additive"] == pytest.approx(0.6)
    spread = math.sqrt(0.02)  # of -0.5 and -0.3
    assert row["quadratic_difference_error"] == pytest.approx(math.sqrt(spread**2 / 2 + 0.3**2))
    assert row["groups_changed_quadratic"] == 1
    assert row["groups_changed_additive"] == 0
