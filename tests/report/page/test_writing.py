"""The page holds the report, all of it and nothing else, whatever its names and numbers are."""

import base64
import gzip
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.reports import large_report, report_of
from helpers.taylor_models import make_taylor

from lightning_mpq.report import Report
from lightning_mpq.report.page import writing

ELEMENT = re.compile(r'<script type="application/(json|gzip)" id="data">(.*?)</script>', re.DOTALL)


def data_of(text: str) -> dict:
    ((kind, content),) = ELEMENT.findall(text)
    return json.loads(content if kind == "json" else gzip.decompress(base64.b64decode(content)))


def test_the_json_in_the_page_is_that_of_the_file(tmp_path):
    report = report_of(make_taylor(5, errors=True))
    page = report.to_html(tmp_path / "new" / "report.html")
    assert data_of(page.read_text()) == json.loads(report.save(tmp_path / "report.json").read_text())


def test_a_page_needs_nothing_else(tmp_path):
    text = report_of(make_taylor(2)).to_html(tmp_path / "report.html").read_text()
    assert not re.search(r"""<(link|img|iframe)\b|\bsrc\s*=\s*["']|@import|url\(""", text.split("<script>")[0])
    assert "default-src 'none'" in text
    assert text.count("Permission to use, copy, modify, and/or distribute") == 2  # D3's licence and Plot's
    assert len(text.encode()) < 600_000


@pytest.mark.parametrize("name", ["</script><b>bold</b>", "<!--<script>", "a & b", "]]>", "\u2028", "$style"])
def test_no_name_ends_the_data_or_becomes_markup(tmp_path, name):
    report = report_of(make_taylor(names=[name, "other"]), left_in_float={name: name})
    text = report.to_html(tmp_path / "report.html").read_text()
    ((_, content),) = ELEMENT.findall(text)
    assert not set("<>&") & set(content)
    assert data_of(text)["groups"][0]["group"] == name
    assert text.count("<script>") == text.count("</script>") - 1  # the data have another opening


def test_numbers_that_json_does_not_have_are_words(tmp_path):
    report = report_of(make_taylor(2))
    metrics = {"val_loss": float("nan"), "other": float("-inf")}
    broken = replace(report, models=(*report.models[:-1], replace(report.models[-1], metrics=metrics)))
    found = data_of(broken.to_html(tmp_path / "report.html").read_text())
    assert found["models"][-1]["metrics"] == {"val_loss": "nan", "other": "-inf"}


def test_one_group_and_an_old_report_without_a_frontier_have_pages(tmp_path):
    report = report_of(make_taylor(1))
    assert data_of(report.to_html(tmp_path / "one.html").read_text())["groups"][0]["group"] == "block0.layer0"
    old = json.loads(json.dumps(report.to_dict()))
    for name in ("frontier", "receipt", "coverage", "pairs"):
        old.pop(name)
    page = Report.from_dict(old).to_html(tmp_path / "old.html")
    assert data_of(page.read_text())["frontier"] is None


def test_a_report_of_2000_groups_stays_below_a_megabyte(tmp_path):
    report = large_report(2000)
    page = report.to_html(tmp_path / "report.html")
    assert page.stat().st_size < 1e6
    assert data_of(page.read_text()) == json.loads(json.dumps(report.to_dict()))


def test_every_file_of_the_page_is_in_the_package():
    folder = Path(writing.__file__).parent
    assert {path.name for path in folder.glob("vendor/*")} == {
        *("d3.LICENSE", "d3.min.js", "plot.LICENSE", "plot.min.js")
    }
    heads = {name: (folder / "vendor" / f"{name}.min.js").read_text()[:120] for name in writing.LIBRARIES}
    assert "v7.9.0" in heads["d3"]
    assert "@observablehq/plot v0.6.17" in heads["plot"]
