"""Every benchmark says what it measures, and runs from its beginning to its result file on made-up data."""

import importlib
import sys
from pathlib import Path

import pytest

import benchmarks
from benchmarks.problems.trained import EPOCHS
from benchmarks.runs import gpu
from benchmarks.runs.arguments import parsed, parser_of
from benchmarks.runs.curvature_memory.__main__ import KINDS, work
from benchmarks.runs.scale.__main__ import print_table
from benchmarks.runs.scale.goals import goals
from benchmarks.runs.scale.stages import stages
from benchmarks.tools.results import RESULTS, read_results

RUNS = sorted(path.parent.name for path in (Path(benchmarks.__file__).parent / "runs").glob("*/__main__.py"))
SHORT = [name for name in RUNS if name not in ("inference_gpu", "curvature_memory", "scale")]
"""Without a GPU, and without processes that import everything anew."""
LIGHT = ("allocation", "inference", "repair")
"""Those that take seconds; ``make benchmarks`` and ``pytest -m slow`` run all."""
NEEDS = {
    "activations": "onnxscript",
    "activations_pretrained": "onnxscript",
    "finetune_torchao": "torchao",
    "inference": "onnxruntime",
    "main_job": "sklearn",
    "noise": "sklearn",
    "targets": "onnxscript",
}


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


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what a process holds")
def test_stages_of_a_language_model_and_what_is_said_of_them(capsys):
    pytest.importorskip("transformers", reason="the models are its own")
    rows = stages("tiny", "bfloat16", [2, 8], 1, 2, 8)
    assert [row["stage"] for row in rows] == ["training step", "round", "profile", "allocate", "quantize"]
    assert set(rows[0]) >= set(read_results("scale")["results"][0])
    assert all(
        isinstance(row["peak_bytes"], int) for row in rows
    )  # below zero where a tiny model finds room that is free
    larger = [row | {"shape": "larger", "weights": 2 * row["weights"]} for row in rows]
    names = [goal.name.split(",")[0] for goal in goals([*rows, *larger])]
    assert names[0].startswith("peak memory of a job on tiny in bfloat16 (")
    assert names[-1] == "CPU time a weight and token"
    assert len(names) == 5
    print_table(rows)
    assert "bfloat16" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore")
def test_the_script_for_a_gpu_runs_small_on_a_processor(tmp_path, capsys):
    pytest.importorskip("transformers", reason="the models are its own")
    gpu.main(["--tiny", "--widths", "2", "8", "--output", str(tmp_path / "gpu.json")])
    found = read_results("gpu", tmp_path)
    assert [row["model"] for row in found["results"] if row["stage"] == "quantize"] == list(gpu.MODELS)
    assert found["settings"]["skipped"] == []
    gpu.main(["--tiny", "--minutes", "0", "--output", str(tmp_path / "gpu.json")])
    assert read_results("gpu", tmp_path)["settings"]["skipped"] == [f"{name}: no time left" for name in gpu.MODELS]


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
