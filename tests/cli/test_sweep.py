"""One page of all jobs of a multirun."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.reports import report_of
from helpers.taylor_models import make_taylor
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import RunMode
from omegaconf import OmegaConf

from lightning_mpq.cli.sweep import SweepPage
from lightning_mpq.report.sweep import Sweep


def job(folder: Path, number: int, overrides: list[str], average_bits: float | None) -> None:
    own = folder / str(number)
    (own / ".hydra").mkdir(parents=True)
    (own / ".hydra" / "overrides.yaml").write_text(json.dumps(overrides))
    if average_bits is not None:
        report = report_of(make_taylor(4), average_bits)
        report.save(own / "report.json")
        report.to_html(own / "report.html")


def test_all_jobs_are_in_the_table_and_in_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in (10, 2):
        job(tmp_path, number, [f"budget.average_bits={number / 4 + 3.5}", "seed=1"], number / 4 + 3.5)
    job(tmp_path, 3, ["budget.average_bits=0.5", "seed=1", "~export"], None)
    SweepPage().on_multirun_end(OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}}))
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "sweep.json").read_text())
    assert found["swept"] == ["budget.average_bits", "export"]
    assert [each["name"] for each in found["jobs"]] == ["2", "3", "10"]
    assert [each["page"] for each in found["jobs"]] == ["2/report.html", None, "10/report.html"]
    reports = [json.loads((tmp_path / name / "report.json").read_text()) for name in ("2", "10")]
    assert [found["jobs"][0]["model"], found["jobs"][2]["model"]] == [report["models"][-1] for report in reports]
    assert found["jobs"][1]["problem"] == "no report"
    for report in reports:
        assert f"{report['models'][-1]['stored_bytes']:,}" in printed
    assert "no report" in printed
    assert (tmp_path / "sweep.html").stat().st_size < 1e6


def test_an_empty_multirun_leaves_nothing_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    SweepPage().on_multirun_end(OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}}))
    assert "there is no page of it" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_float_models_stand_once_in_a_sweep(tmp_path: Path) -> None:
    report = report_of(make_taylor(3))
    for name, metric in (("a", 0.9), ("b", 0.9), ("c", 0.8)):
        models = (replace(report.models[0], metrics={"acc": metric}), *report.models[1:])
        replace(report, models=models).save(tmp_path / name / "report.json")
    sweep = Sweep.read({tmp_path / name: {} for name in "abc"}, tmp_path)
    assert [row.metrics["acc"] for row in sweep.floats] == [0.9, 0.8]


def test_a_job_that_fails_leaves_the_page_of_the_others(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    job(tmp_path, 0, ["budget.average_bits=0.5"], None)
    config = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}, "mode": RunMode.MULTIRUN}})
    page, failed, done = SweepPage(), JobReturn(status=JobStatus.FAILED), JobReturn(status=JobStatus.COMPLETED)
    page.on_job_end(config, failed)
    job(tmp_path, 1, ["budget.average_bits=4"], 4.0)
    page.on_job_end(config, done)
    found = json.loads((tmp_path / "sweep.json").read_text())
    assert [each["problem"] for each in found["jobs"]] == ["no report", ""]
    assert str(tmp_path / "sweep.html") in caplog.text
    SweepPage().on_job_end(OmegaConf.merge(config, {"hydra": {"sweep": {"dir": "nowhere"}, "mode": "RUN"}}), failed)
    assert not Path("nowhere").exists()
