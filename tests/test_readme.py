"""Every command and every example in README runs."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest
import torch
from idx_files import write_fashion_mnist
from torch import nn
from trainer_cases import SmallClassifier, SmallData

import lightning_mpq as mpq
from benchmarks.main_job import QUICK

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
pytestmark = pytest.mark.filterwarnings("ignore")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    lines = [line.partition("#")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    return list(dict.fromkeys(line for line in lines if line))


def shortened(command: str, folder: Path) -> list[str]:
    """Return a command as it stands in README but quick, on small data and away from the repository's own files."""
    words = shlex.split(command)
    if words[0] == "make":
        return ["make", "--dry-run", "--directory", str(ROOT), *words[1:]]
    program, *rest = words
    assert program.startswith(".venv/bin/")
    if program.endswith("lightning-mpq"):
        rest = [f"data.root={folder}" if word.startswith("data.root=") else word for word in rest]
        return [sys.executable, "-m", "lightning_mpq.cli", *rest, *QUICK, "solver.time_limit=1"]
    assert program.endswith("python")
    if "benchmarks.main_job" in rest:
        rest = [str(folder) if word.startswith("/usr/") else word for word in rest]
        rest += ["--quick", "--budgets", "3", "--output", str(folder / "result.json"), "--cache", str(folder)]
    if "benchmarks.readme" in rest:
        rest.append("--check")
    return [sys.executable, *rest]


def test_readme_names_the_two_commands_that_do_everything():
    assert {"make demo", "make test"} <= set(commands())


@pytest.mark.parametrize("command", commands())
def test_command(command, tmp_path):
    write_fashion_mnist(tmp_path)
    here = ROOT if "benchmarks" in command or command.startswith("make") else tmp_path
    done = subprocess.run(shortened(command, tmp_path), cwd=here, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


def test_python_examples_run_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, *rest = (block for block in blocks("python") if "mpq.export_" not in block)
    rest = [block for block in rest if "mpq.use_kernels" not in block]
    names = {"MyLightningModule": SmallClassifier, "MyDataModule": SmallData}
    first = first.replace("average_bits=3.0", "average_bits=4.5").replace("max_epochs=10", "max_epochs=1")
    exec(first, names)
    assert set(names["mixed"].policy.bits().values()) <= set(range(2, 9))
    images = SmallData().images
    assert torch.equal(names["model"].eval()(images), mpq.load("packed", model=SmallClassifier()).eval()(images))
    for block in rest:
        data = SmallData()
        scope = {"mpq": mpq, "L": L, "model": SmallClassifier(), "data": data, "batches": list(data.val_dataloader())}
        exec(block.replace("average_bits=3.0", "average_bits=4.5").replace("max_epochs=10", "max_epochs=1"), scope)
        allocation = scope["mixed"].allocation if "mixed" in scope else scope["allocation"]
        assert allocation.costs["average_bits"] <= 4.5


def test_kernel_example_runs():
    [block] = (block for block in blocks("python") if "mpq.use_kernels" in block)
    model = mpq.quantize(nn.Sequential(nn.Linear(8, 8)), mpq.BitPolicy({"0": mpq.WeightScheme(4)}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda *_: None)
        exec(block, {"mpq": mpq, "model": model})
    assert model[0].memory == "fast"


def test_export_example_runs(tmp_path, monkeypatch):
    for package in ("onnx", "onnxruntime", "onnxscript", "compressed_tensors", "torchao"):
        pytest.importorskip(package, reason="needs the extras onnx, compressed-tensors and torchao")
    monkeypatch.chdir(tmp_path)
    [block] = (block for block in blocks("python") if "mpq.export_" in block)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 32), nn.ReLU(), nn.Linear(32, 3))
    policy = mpq.BitPolicy({"1": mpq.WeightScheme(2), "3": mpq.WeightScheme(5)})
    mpq.quantize(model, policy)
    scope = {"mpq": mpq, "model": model, "policy": policy, "images": SmallData().images[:4]}
    exec(block, scope)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["compressed", "model.onnx", "policy.json"]
    assert scope["exported"].fused == 2
    assert set(scope["config"].fqn_to_config) == {"1", "3"}
