"""Reports as values, as logged scalars, as JSON and as tables."""

import io
import json
from contextlib import suppress
from dataclasses import replace

import pytest
from helpers.odd_json import oddities
from rich.console import Console

from lightning_mpq.allocation.stability import Stability
from lightning_mpq.groups.coverage import Coverage
from lightning_mpq.report import GroupRow, ModelRow, PairsRow, RepairRow, Report, TargetRow, print_report


def make_report() -> Report:
    return Report(
        loss="divergence",
        models=(
            ModelRow("float", 32.0, 4000, 0.0, 0.0, 0.0, {"val_accuracy": 0.95}),
            ModelRow("uniform 3 bits", 3.1, 600, None, 0.07, 0.09, {"val_accuracy": 0.8}, 0.05, 0.05, 0.004),
            ModelRow(
                "chosen",
                2.9,
                500,
                0.0123,
                0.02,
                0.03,
                {"val_accuracy": 0.9},
                0.01,
                0.0,
                0.0,
                {"val_accuracy": (0.8, 0.93)},
            ),
        ),
        groups=(GroupRow("body.conv", ("body.conv",), 3, "3-bit half/channel", 900, 400, 0.01, 0.008, 0.009),),
        left_in_float={"body.attention[0]": "not supported yet"},
        solver={
            "status": "WITHIN_GAP",
            "predicted_loss": 0.0123,
            "lower_bound": 0.0122,
            "gap": 0.008,
            "stability": Stability(20, 16, {"body.conv": 0.75}, 0.001, (0.011, 0.014), 0.6, 0.004).to_dict(),
        },
        seconds={"profile": 1.5},
        samples=512,
        repair=(
            RepairRow("independent", (), 0.031),
            RepairRow("sequential", (), 0.022),
            RepairRow("sequential", ("biases", "batchnorm"), 0.021, 0.012, ("biases",)),
        ),
        pairs=PairsRow(0.0005, 0.001, 0.0, 0.01),
        coverage=Coverage(900, 1000, {"Mixer": (("body.mix",), 100)}),
        held_out=100,
        targets=(TargetRow("torch", True, stored_bytes=400), TargetRow("npu", False, 2, ("'body.conv': 3 bits",))),
    )


def test_models_are_found_by_name_or_first_word():
    report = make_report()
    assert report["uniform"] is report["uniform 3 bits"] is report.models[1]
    with pytest.raises(KeyError, match="No model 'additive'"):
        report["additive"]


def test_scalars_hold_every_number_that_is_known():
    scalars = make_report().scalars()
    assert scalars["chosen/val_accuracy"] == 0.9
    assert scalars["chosen/predicted_loss"] == 0.0123
    assert "uniform/predicted_loss" not in scalars
    assert scalars["solver/gap"] == 0.008
    assert scalars["coverage"] == 0.9
    assert scalars["chosen/fitted_loss"] == 0.01
    assert (scalars["uniform/above_chosen"], scalars["uniform/above_chosen_error"]) == (0.05, 0.004)
    assert scalars["pairs/share"] == pytest.approx(0.05)
    assert scalars["pairs/share_error"] == pytest.approx(0.1)
    assert scalars["stability/kept"] == 0.75
    assert scalars["stability/near_best"] == 0.6
    assert scalars["seconds/profile"] == 1.5
    assert all(isinstance(value, float) for value in scalars.values())


def test_the_file_holds_what_the_report_holds(tmp_path):
    report = make_report()
    found = json.loads(report.save(tmp_path / "new" / "report.json").read_text())
    assert found["format"] == "lightning_mpq.report"
    assert found["models"][2]["metrics"] == {"val_accuracy": 0.9}
    assert found["groups"][0]["measured_alone"] == 0.009


def test_a_report_is_read_back_from_its_json(tmp_path):
    report = make_report()
    assert Report.from_dict(json.loads(report.save(tmp_path / "report.json").read_text())) == report
    with pytest.raises(ValueError, match="Expected a report of format"):
        Report.from_dict({"format": "something else"})


def test_the_tables_show_every_row_and_number():
    text = io.StringIO()
    print_report(make_report(), Console(file=text, width=200))
    shown = text.getvalue()
    for part in (
        "uniform 3 bits",
        "8.00",
        "0.0123",
        "body.conv",
        "body.attention[0]: not supported yet",
        "0.800 %",
        "512 samples",
        "nats per sample, summed over its positions",
        "nats per sample, proven lower bound",
        "sequential",
        "(biases taken back) + batchnorm",
        "on 100 held-out samples",
        "+0.05 +- 0.004",
        "Held out: 100 samples, which judge; the chosen model loses 0.02 on them and 0.01 on samples that it was",
        "Between groups: +0.0005 +- 0.001 of a predicted loss of 0.01 (5 +- 10 %): zero within its error",
        "0.021",
        "Quantized: 900 of 1,000 parameters (90.0 %), over which bits per weight are averaged",
    ):
        assert part in shown


def test_odd_values_are_refused_in_one_way():
    for values in oddities(json.loads(json.dumps(make_report().to_dict()))):
        with suppress(ValueError):
            Report.from_dict(values)


def test_a_metric_that_is_called_like_a_number_of_ours_takes_nothing_from_it():
    report = make_report()
    named = replace(report.models[0], metrics={"stored_bytes": 7.0, "measured_loss": 8.0, "val_loss": 9.0})
    plain, both = report.scalars(), replace(report, models=(named, *report.models[1:])).scalars()
    short = named.name.split()[0]
    for key in ("stored_bytes", "measured_loss"):
        assert both.get(f"{short}/{key}") == plain.get(f"{short}/{key}")
        assert both[f"{short}/metric_{key}"] == named.metrics[key]
    assert both[f"{short}/val_loss"] == 9.0
