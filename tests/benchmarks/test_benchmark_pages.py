"""Blocks of any number of pages are filled from results, and what stands around them stays."""

import pytest

from benchmarks.figures import FIGURES, draw_all
from benchmarks.pages.__main__ import ROOT, default_pages, main
from benchmarks.pages.blocks import BLOCKS
from benchmarks.pages.filling import filled
from benchmarks.tools.results import RESULTS, read_results

BLOCK = "before\n<!-- fidelity:begin -->\nold\n<!-- fidelity:end -->\nafter\n"


def test_committed_pages_are_what_results_say():
    main(["--check"])


def test_each_page_gets_its_blocks_with_paths_from_where_it_lies(tmp_path):
    (tmp_path / "docs").mkdir()
    pages = [tmp_path / "README.md", tmp_path / "docs" / "measurements.md", tmp_path / "docs" / "plain.md"]
    for page, text in zip(pages, (BLOCK, BLOCK * 2, "no block\n"), strict=True):
        page.write_text(text)
    written = filled(pages, BLOCKS)
    assert set(written) == set(pages[:2])
    for page in pages[:2]:
        lines = written[page].splitlines()
        assert (lines[0], lines[-1]) == ("before", "after")
        assert "old" not in lines
        [path] = {line.partition("](")[2].rstrip(")") for line in lines if line.startswith("![")}
        assert (page.parent / path).resolve() == RESULTS / "fidelity.svg"
    assert written[pages[1]].count("| Fisher, all pairs (default) |") == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- fidelity:begin -->", "<!-- fidelity:begin --> has no partner"),
        ("<!-- fidelity:end -->", "<!-- fidelity:end --> has no partner"),
        ("<!-- fidelity:begin --><!-- repair:end -->", "<!-- fidelity:begin --> has no partner"),
        (
            "<!-- fidelity:begin --><!-- fidelity:begin --><!-- fidelity:end -->",
            "<!-- fidelity:begin --> has no partner",
        ),
        ("<!-- speed:begin --><!-- speed:end -->", "there is no block 'speed'; there are main_job, "),
    ],
)
def test_markers_that_fit_nothing_are_refused(tmp_path, text, message):
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(ValueError, match=message):
        filled([page], BLOCKS)


def test_a_page_that_differs_ends_the_check(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(BLOCK)
    with pytest.raises(SystemExit, match="page.md is not what benchmarks/results say"):
        main(["--check", str(page)])


def test_every_block_and_figure_has_its_results():
    assert ROOT / "README.md" in default_pages()
    for source, _ in (*BLOCKS.values(), *FIGURES.values()):
        assert read_results(source)["results"]


def test_the_same_results_give_the_same_figures(tmp_path):
    pytest.importorskip("matplotlib", reason="draws with it")
    drawn = draw_all(tmp_path)
    assert {path.stem for path in drawn} == set(FIGURES)
    first = (tmp_path / "main_job.svg").read_bytes()
    draw_all(tmp_path, ["main_job"])
    assert (tmp_path / "main_job.svg").read_bytes() == first
