"""Every benchmark says what it measures, and runs from its beginning to its result file on made-up data."""

import importlib
from pathlib import Path

import pytest

import benchmarks
from benchmarks.problems.trained import EPOCHS
from benchmarks.runs.arguments import parsed, parser_of
from benchmarks.runs.curvature_memory.__main__ import KINDS, work
from benchmarks.tools.results import RESULTS, read_results

RUNS = sorted(path.parent.name for path in (Path(benchmarks.__file__).parent / "runs").glob("*/__main__.py"))
SHORT = [name for name in RUNS if name not in ("inference_gpu", "curvature_memory")]
"""Without a GPU, and without three processes that import everything anew."""
LIGHT = ("allocation", "inference", "repair")
"""Those that take seconds; ``make benchmarks`` and ``pytest -m slow`` run all."""
NEEDS = {"activations": "onnxscript", "finetune_torchao": "torchao", "inference": "onnxruntime", "main_job": "sklearn"}


def main_of(name):
    return importlib.import_module(f"benchmarks.runs.{name}.__main__").main


def test_each_run_has_results_but_for_the_one_that_needs_a_gpu():
    written = {path.stem.partition("-")[0] for path in RESULTS.glob("*.json")}
    assert set(RUNS) - {"inference_gpu"} == written


@pytest.mark.parametrize("name", RUNS)
def test_help(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main_of(name)(["--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith(f"usage: python -m benchmarks.runs.{name} ")
    assert "--quick" in said


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [n if n in LIGHT else pytest.param(n, marks=pytest.mark.slow) for n in SHORT])
def test_quick_run(name, tmp_path, monkeypatch):
    pytest.importorskip(NEEDS.get(name, "torch"), reason="the benchmark compares with it, or takes its data")
    monkeypatch.chdir(tmp_path)
    main_of(name)(["--quick"])
    [written] = (tmp_path / "outputs" / "quick").glob("*.json")
    found = read_results(written.stem, written.parent)
    assert set(found) >= {"environment", "settings", "targets", "results"}
    committed = read_results("main_job-digits" if name == "main_job" else name)["results"]
    assert set(found["results"][0]) >= set(committed[0])  # pages and targets find what they read


@pytest.mark.parametrize("kind", KINDS)
def test_work_whose_memory_is_measured(kind):
    work(kind, "transformer1")


@pytest.mark.parametrize("name", ["fidelity", "finetune"])
def test_images_are_asked_for(name, capsys):
    with pytest.raises(SystemExit):
        main_of(name)([])
    assert "--root=FOLDER is needed, with the four IDX files of Fashion-MNIST; or --quick." in capsys.readouterr().err


def test_a_folder_without_images_is_a_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match="has all four files"):
        main_of("selection")(["--root", str(tmp_path)])


def test_what_is_asked_wins_over_what_is_quick(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parser = parser_of("some", "Measures.", images=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parsed(parser, ["--quick", "--epochs", "7", "--output", "other.json"], seeds=[0])
    assert (arguments.seeds, arguments.epochs, arguments.output) == ([0], 7, Path("other.json"))
    assert sorted(path.name for path in arguments.root.iterdir())[0] == "t10k-images-idx3-ubyte"
    assert parsed(parser_of("some", "Measures.", images=True), ["--root", "data"], epochs=1).epochs == EPOCHS
