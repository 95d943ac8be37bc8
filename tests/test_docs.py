"""What README and documentation show is so: commands and Python run, links lead somewhere, names exist."""

import re
import shlex
import subprocess
from functools import cache
from pathlib import Path

import lightning as L
import pytest
import torch
from helpers.idx_files import write_fashion_mnist
from helpers.processes import try_module
from helpers.trainer import SmallClassifier, SmallData
from torch import nn

import lightning_mpq as mpq
from benchmarks.runs.main_job.configuration import QUICK
from lightning_mpq.cli.verify import main as verify

ROOT = Path(__file__).parent.parent
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "examples" / "README.md", *DOCS]
pytestmark = pytest.mark.filterwarnings("ignore")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def commands(*pages: Path) -> list[str]:
    found = (block for page in pages for block in blocks(page, "bash"))
    lines = [line.partition("#")[0].strip() for block in found for line in block.splitlines()]
    return list(dict.fromkeys(line for line in lines if line))


def shortened(command: str, folder: Path) -> tuple[str, list[str]]:
    """Return module and arguments of a command as it stands on a page, but quick, on small data and in a folder."""
    program, *rest = shlex.split(command)
    assert program.startswith(".venv/bin/")
    program = program.removeprefix(".venv/bin/")
    if program == "lightning-mpq":
        rest = [f"data.root={folder}" if word.startswith("data.root=") else word for word in rest]
        return "lightning_mpq.cli", [*rest, *QUICK, "solver.time_limit=1"]
    if program == "pytest":
        assert all((ROOT / word).exists() for word in rest)
        return "pytest", ["--version"]
    assert (program, rest[0]) == ("python", "-m")
    module, *rest = rest[1:]
    if module == "benchmarks.runs.main_job":
        rest = [str(folder) if word.startswith("/usr/") else word for word in rest]
        rest += ["--quick", "--budgets", "3", "--output", str(folder / "result.json"), "--cache", str(folder)]
    elif module.startswith("benchmarks.runs."):
        rest.append("--help")
    elif module == "benchmarks.pages":
        rest.append("--check")
    return module, rest


def test_readme_names_the_two_commands_that_do_everything():
    assert {"make demo", "make test"} <= set(commands(PAGES[0]))


@pytest.mark.parametrize("command", commands(*PAGES))
def test_command(command, tmp_path):
    if command.startswith("make "):
        made = ["make", "--dry-run", "--directory", str(ROOT), *shlex.split(command)[1:]]
        assert subprocess.run(made, capture_output=True).returncode == 0
        return
    if "lightning-mpq-verify" in command:
        with pytest.raises(SystemExit, match="0"):
            verify(["--help"])
        return
    if "fashion" in command:
        write_fashion_mnist(tmp_path)
    module, arguments = shortened(command, tmp_path)
    done = try_module(module, *arguments, cwd=tmp_path if "lightning-mpq" in command else ROOT)
    assert done.returncode == 0, done.stderr[-2000:]


@cache
def profiled() -> tuple[mpq.TaylorModel, object, mpq.BitPolicy]:
    """Return what the steps make of a small model: its Taylor model, its rounded weights and a policy."""
    torch.manual_seed(0)
    model, batches = SmallClassifier(), list(SmallData().val_dataloader())
    groups = mpq.find_groups(model)
    rounded = mpq.round_candidates(model, batches, groups, mpq.make_candidates(groups, bits=[2, 4, 8]))
    taylor = mpq.profile(model, batches, groups=groups, rounded=rounded)
    return taylor, rounded, mpq.allocate(taylor, mpq.Budget(average_bits=5)).policy


def names_for(block: str) -> dict[str, object]:
    """Return what a block takes for granted: a model, float or packed as it needs it, and data."""
    taylor, rounded, policy = profiled()
    torch.manual_seed(0)
    model: nn.Module = SmallClassifier()  # that which was profiled
    if "mpq.use_kernels(model" in block or "mpq.export_" in block:  # compressed-tensors carries no convolutions
        model = nn.Sequential(nn.Flatten(), nn.Linear(36, 32), nn.ReLU(), nn.Linear(32, 3))
        policy = mpq.BitPolicy({"1": mpq.WeightScheme(2), "3": mpq.WeightScheme(5)})
        mpq.quantize(model, policy)
    elif "mpq.save(" in block and ".fit(" not in block:
        mpq.quantize(model, policy, rounded=rounded, repair=mpq.RepairOptions(sequential=False, batchnorm=False))
    data = SmallData()
    names = {"MyLightningModule": SmallClassifier, "MyDataModule": SmallData, "L": L, "mpq": mpq, "torch": torch}
    names |= {"model": model, "data": data, "batches": list(data.val_dataloader()), "images": data.images[:4]}
    return names | {"taylor": taylor, "rounded": rounded, "policy": policy}


def run_all(page: Path) -> dict[str, object]:
    """Run the Python of a page in order; each block begins with a new model, and knows what those before it made."""
    made: dict[str, object] = {}
    for block in blocks(page, "python"):
        given = names_for(block)
        kept = {name: value for name, value in made.items() if name not in given}
        scope = given | kept
        exec(block.replace("max_epochs=10", "max_epochs=1"), scope)
        made |= scope
    return made


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name_of)
def test_python_runs_in_order(page, tmp_path, monkeypatch):
    if page.stem == "deployment":
        for package in ("onnx", "onnxruntime", "onnxscript", "compressed_tensors", "torchao"):
            pytest.importorskip(package, reason="needs the extras onnx, compressed-tensors and torchao")
    monkeypatch.chdir(tmp_path)
    made = run_all(page)
    if page.stem in ("README", "index"):
        assert made["mixed"].allocation.costs["average_bits"] <= 3
    if page.stem == "getting_started":
        assert made["frontier"].points[0].costs["average_bits"] <= 3.5
    if page.stem == "deployment":
        assert made["exported"].fused == 2
        assert set(made["config"].fqn_to_config) == {"1", "3"}
        assert {"compressed", "model.onnx", "policy.json"} <= {path.name for path in tmp_path.iterdir()}


def test_readme_loads_what_it_saved(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = blocks(PAGES[0], "python")[0]
    scope = names_for(first)
    exec(first.replace("max_epochs=10", "max_epochs=1"), scope)
    images = SmallData().images
    assert set(scope["mixed"].policy.bits().values()) <= set(range(2, 9))
    assert torch.equal(scope["model"].eval()(images), mpq.load("packed", SmallClassifier()).eval()(images))


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and MyST make them."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith(("http:", "https:")):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), target


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_modules_and_names_exist(page):
    text = page.read_text()
    for path in re.findall(r"`([\w/]+/[\w.]+\.(?:py|json|yaml|md|svg))`", text):
        assert any((root / path).exists() for root in (ROOT, ROOT / "lightning_mpq")), path
    for module in re.findall(r"benchmarks\.runs\.(\w+)", text):
        runs = ROOT / "benchmarks" / "runs"
        assert (runs / module / "__main__.py").exists() or (runs / f"{module}.py").exists(), module
    for name in re.findall(r"\bmpq\.([A-Za-z_]\w*)", text):
        assert name in mpq.__all__ or name in ("budget", "policy"), name  # the latter of `callbacks.mpq.budget`


def test_every_public_name_is_documented():
    text = (ROOT / "docs" / "api.md").read_text()
    documented = set(re.findall(r"^\.\. auto\w+:: lightning_mpq\.(\w+)$", text, re.MULTILINE))
    assert documented >= set(mpq.__all__) - {"__version__"}
