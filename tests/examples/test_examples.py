"""Every example runs as it stands, and ends with what it promises."""

import json
import runpy
import shutil
import sys
from pathlib import Path

import pytest
from helpers.processes import run_python, try_module

import lightning_mpq as mpq

FOLDER = Path(__file__).parents[2] / "examples"
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run a script with arguments in an empty folder, and return what it prints."""

    def run_script(name: str, *arguments: str) -> str:
        script = FOLDER / f"{name}.py"
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(FOLDER)
        monkeypatch.setattr(sys, "argv", [str(script), *arguments])
        monkeypatch.delitem(sys.modules, "digits", raising=False)
        runpy.run_path(str(script), run_name="__main__")
        return capsys.readouterr().out

    return run_script


def test_readme_lists_every_script():
    text = (FOLDER / "README.md").read_text()
    scripts = [path.name for path in FOLDER.glob("*.py") if path.name != "digits.py"]
    assert len(scripts) == 5
    assert all(f"`python examples/{name}" in text for name in scripts)


def test_the_notebook_goes_from_a_checkpoint_to_a_budget(tmp_path, monkeypatch, capsys):
    """Its cells run one after the other, as a kernel runs them; none of its outputs is kept in the file."""
    plt = pytest.importorskip("matplotlib.pyplot")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.delitem(sys.modules, "digits", raising=False)
    notebook = json.loads((FOLDER / "choosing_a_budget.ipynb").read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    cells = notebook["cells"]
    assert len({cell["id"] for cell in cells}) == len(cells)
    names: dict[str, object] = {"__name__": "__main__"}
    for cell in cells:
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
            exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    report = mpq.Report.from_dict(json.loads((tmp_path / "report.json").read_text()))
    assert report["chosen"].average_bits <= 3
    assert report["chosen"].metrics["val_accuracy"] > report["float"].metrics["val_accuracy"] - 0.05 > 0.85
    assert (tmp_path / "report.html").exists()
    printed = capsys.readouterr().out
    assert "keep their width" in printed
    assert f"{report['chosen'].metrics['val_accuracy']:.3f}"[:4] in printed
    plt.close("all")


def test_callback(run, tmp_path):
    assert "Between groups: " in run("callback")
    assert (tmp_path / "packed" / "lightning_mpq.json").exists()


def test_step_by_step(run, tmp_path):
    printed = run("step_by_step")
    policy = mpq.BitPolicy.load(tmp_path / "policy.json")
    assert policy["network.10"].bits >= 4
    floating, packed = (float(printed.split(words)[0].split()[-1]) for words in (" in float", " packed"))
    assert packed > floating - 0.05 > 0.85
    assert (tmp_path / "packed").is_dir()


def test_hugging_face(run):
    pytest.importorskip("transformers")
    cosine = float(run("hugging_face").split()[-1])
    assert 0.9 < cosine < 1


def test_fine_tuning(run):
    printed = run("fine_tuning")
    before, after = (float(printed.split(word)[0].split()[-1]) for word in (" before fine-tuning", " after\n"))
    assert after < before
    assert "fine-tuned: " in printed


def test_sweep_of_a_module_of_ones_own(run, tmp_path):
    printed = run("sweep", "-m", "callbacks.mpq.budget.average_bits=2.5,4", "trainer.max_epochs=1")
    smaller, larger = (int(printed.split(f"{bits} bits: ")[1].split()[0].replace(",", "")) for bits in ("2.5", "4"))
    assert smaller < larger
    reports = [json.loads(path.read_text()) for path in sorted(tmp_path.rglob("report.json"))]
    assert [report["models"][-1]["name"] for report in reports] == ["chosen", "chosen"]
    seconds = [report["seconds"]["profile"] for report in reports]
    assert seconds[1] < seconds[0] / 2  # the same weights: found in the cache


def test_a_project_of_ones_own_on_the_command_line(tmp_path):
    project = tmp_path / "project"
    shutil.copytree(FOLDER / "own_project", project)

    def run_in(folder: Path, *arguments: str) -> str:
        done = try_module("lightning_mpq.cli", *arguments, cwd=folder)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout + done.stderr

    run_python((project / "spirals.py").read_text(), cwd=project)
    quick = ("trainer.accelerator=cpu", "trainer.enable_progress_bar=false", "solver.time_limit=1")
    targets = ("model._target_=spirals.Net", "data._target_=spirals.Spirals", "ckpt_path=best.ckpt")
    said = run_in(project, *targets, "budget.average_bits=4", "output_dir=plain", *quick)
    assert "Nothing is trained: the model of best.ckpt" in said
    report = json.loads((project / "plain" / "report.json").read_text())
    floating, chosen = report["models"][0], report["models"][-1]
    assert chosen["average_bits"] <= 4
    assert floating["metrics"]["val_acc"] > 0.9
    assert chosen["metrics"]["val_acc"] > floating["metrics"]["val_acc"] - 0.05
    sweep = ("-m", "--config-dir", "conf", "experiment=spirals", "ckpt_path=best.ckpt")
    said = run_in(project, *sweep, "budget.average_bits=3.5,5", "hydra.sweep.dir=swept", *quick)
    found = json.loads((project / "swept" / "sweep.json").read_text())
    assert found["swept"] == ["budget.average_bits"]
    assert [(project / "swept" / job["page"]).is_file() for job in found["jobs"]] == [True, True]
    assert "Sweep" in said
