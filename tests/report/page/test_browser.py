"""The page in a headless Chromium: from disk, without a request, moved by mouse and keyboard, read by axe-core."""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from helpers.reports import large_report, report_of
from helpers.taylor_models import make_taylor

from lightning_mpq import BitPolicy
from lightning_mpq.report import Report
from lightning_mpq.report.sweep import Sweep

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (the extra `browser`)")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with sync_api.sync_playwright() as playwright:
        try:
            found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        except sync_api.Error as error:
            pytest.skip(f"no Chromium can be started: {str(error).splitlines()[0]}")
        yield found
        found.close()


@pytest.fixture
def opened(browser, tmp_path):
    """Open a report from disk, and see at the end that nothing was asked for and nothing went wrong."""
    said, contexts = [], []

    def open_page(report: Report, scheme: str = "light", width: int = 1280):
        path = report.to_html(tmp_path / "report.html")
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: said.append(f"error: {error}"))
        page.on("request", lambda request: said.append(request.url))
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-ready]")
        assert said == [path.as_uri()]
        said.clear()
        return page

    yield open_page
    assert said == []
    for context in contexts:
        context.close()


def shown(page) -> dict[str, float]:
    numbers = page.eval_on_selector_all(
        "[data-number][data-value]", "all => all.map(e => [e.dataset.number, e.dataset.value])"
    )
    return {name: float(value) for name, value in numbers}


def test_the_slider_moves_strip_and_numbers_through_the_frontier(opened):
    report = report_of(make_taylor(6, errors=True))
    record = report.frontier
    page = opened(report)
    slider = page.locator("#slider")
    start = [point.name for point in record.points].index("chosen")
    assert slider.input_value() == str(start)
    slider.focus()
    page.keyboard.press("Home")
    for at, point in enumerate(record.points):
        assert slider.input_value() == str(at)
        numbers = shown(page)
        for name in ("average_bits", "stored_bytes", "predicted_loss", "lower_bound"):
            assert numbers[name] == getattr(point, name)
        schemes = [record.schemes[own.schemes[c]] for own, c in zip(record.candidates, point.choice, strict=True)]
        bits = page.locator("#strip").get_attribute("data-bits").split()
        assert bits == [str(scheme["weight"]["bits"]) for scheme in schemes]
        assert f"{point.average_bits:.4g}" in slider.get_attribute("aria-valuetext")
        page.keyboard.press("ArrowRight")
    page.get_by_role("button", name="Back to the chosen policy").click()
    assert slider.input_value() == str(start)


def test_a_click_on_the_strip_shows_the_candidates_of_a_layer(opened):
    report = report_of(make_taylor(6))
    page = opened(report)
    svg = page.locator("#strip svg")
    svg.scroll_into_view_if_needed()
    box = svg.bounding_box()
    page.mouse.click(box["x"] + 0.5 * box["width"] + 60, box["y"] + 40)
    at = int(page.locator("#group").input_value())
    assert at in (3, 4)
    own = report.frontier.candidates[at]
    text = page.locator("#layer").inner_text()
    assert report.groups[at].group in text
    assert page.locator("#layer tbody tr").count() == len(own.schemes)
    page.get_by_label("Group of layers").select_option(label=report.groups[0].group)
    assert report.groups[0].group in page.locator("#layer").inner_text()


@pytest.mark.parametrize("kind", ["json", "yaml", "python"])
def test_a_copied_policy_is_the_one_at_the_slider(opened, kind):
    report = report_of(make_taylor(names=['say "x"', "body.Ä", "</textarea>"]))
    page = opened(report)
    page.locator("#slider").focus()
    page.keyboard.press("Home")
    page.get_by_label("Copy this policy as").select_option(kind)
    page.get_by_role("button", name="Copy this policy").click()
    text = page.evaluate("navigator.clipboard.readText()")
    if kind == "python":
        found: dict = {}
        exec(text, found)
        policy = found["policy"]
    else:
        policy = BitPolicy.from_json(text if kind == "json" else json.dumps(yaml.safe_load(text)))
    record = report.frontier
    assert list(policy) == [group.group for group in report.groups]
    for scheme, own, choice in zip(policy.values(), record.candidates, record.points[0].choice, strict=True):
        assert {"name": str(scheme), **scheme.to_dict()} == record.schemes[own.schemes[choice]]


def test_names_with_markup_stay_text(opened):
    name = "<img src=x onerror=document.title='hit'>"
    page = opened(report_of(make_taylor(names=[name, "b<script>"]), left_in_float={name: "<b>no</b>"}))
    for details in page.locator("details").all():
        details.locator("summary").first.click()
    assert page.locator("main img, main b, main script").count() == 0
    assert "hit" not in page.title()
    assert name in page.locator("main").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 420])
def test_it_fits_both_schemes_and_sizes_and_passes_axe(opened, scheme, width, tmp_path):
    page = opened(report_of(make_taylor(7, errors=True)), scheme, width)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")
    for details in page.locator("details").all():
        details.locator("summary").first.click()
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=f"{folder}/report-{scheme}-{width}.png", full_page=True)
    axe = os.environ.get("AXE_CORE")
    if axe is None:
        pytest.skip("AXE_CORE does not name the file axe.min.js of axe-core, which has the rules")
    page.evaluate(Path(axe).read_text())
    found = page.evaluate("axe.run()")["violations"]
    assert [(each["id"], each["nodes"][0]["html"], each["nodes"][0]["failureSummary"]) for each in found] == []


def test_reports_with_little_in_them_open_too(opened):
    report = report_of(make_taylor(1))
    metrics = {"val_loss": float("nan")}
    bare = {name: value for name, value in report.to_dict().items() if name not in ("frontier", "receipt", "pairs")}
    bare["trials"] = bare["repair"] = []
    bare["solver"] = {"status": "OPTIMAL", "predicted_loss": 0.1, "lower_bound": 0.1, "gap": 0.0}
    for each in (
        report,
        Report.from_dict(json.loads(json.dumps(bare))),
        replace(report, models=tuple(replace(row, metrics=metrics) for row in report.models)),
        replace(report, models=(replace(report.models[-1], predicted_loss=-0.1, measured_loss=-0.2),), groups=()),
    ):
        page = opened(each)
        assert page.locator("#numbers dd").count() >= 3
        page.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_of_a_sweep_draws_and_links_every_job(browser, tmp_path, scheme):
    report = report_of(make_taylor(5))
    for number, bits in enumerate((4, 4.5, 5)):
        each = report_of(make_taylor(5), bits)
        each.save(tmp_path / f"{number} <b>" / "report.json")
        each.to_html(tmp_path / f"{number} <b>" / "report.html")
    folders = {path: {"bits": path.name[0], "why": "<i>"} for path in sorted(tmp_path.iterdir())}
    file = Sweep.read(folders, tmp_path).save(tmp_path)
    page = browser.new_page(color_scheme=scheme)
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(file.as_uri())
    page.wait_for_selector("html[data-ready]")
    assert page.locator("#picture svg a").count() == 3
    page.get_by_label("Upwards").select_option("measured_loss")
    assert page.locator("main b, main i").count() == 0
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=f"{folder}/sweep-{scheme}.png", full_page=True)
    if axe := os.environ.get("AXE_CORE"):
        page.evaluate(Path(axe).read_text())
        assert [each["id"] for each in page.evaluate("axe.run()")["violations"]] == []
    page.get_by_role("link", name="1 <b>", exact=True).click()
    page.wait_for_selector("#slider")
    assert said == []
    assert report.models[0].name in page.locator("#models").inner_text()
    page.close()


def test_2000_groups_stay_fluid(opened):
    page = opened(large_report(2000))
    page.locator("#slider").focus()
    took = page.evaluate(
        """() => { const slider = document.getElementById("slider"), start = performance.now();
        for (let at = 0; at < 5; at += 1) {
          slider.value = at; slider.dispatchEvent(new Event("input")); document.body.offsetHeight;
        }
        return (performance.now() - start) / 5; }"""
    )
    assert took < 1000  # milliseconds a step; about 200 on an idle machine
    assert len(page.locator("#strip").get_attribute("data-bits").split()) == 2000
