import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")

# Stands for Python: says whether its version will do, and makes an environment of programs that log their calls.
FAKE_PYTHON = """#!/bin/sh
case "$*" in
  -c*) exit {refuses} ;;
  --version) echo "Python 3.9.2" ;;
  "-m venv .venv")
    mkdir -p .venv/bin
    for name in python lightning-mpq ruff mypy sphinx-build pytest; do
      printf '#!/bin/sh\\necho %s "$@" >> calls\\n' $name > .venv/bin/$name
      chmod +x .venv/bin/$name
    done ;;
esac
"""


class Checkout:
    """A folder with the Makefile and what it depends on, and a Python that is none."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("Makefile", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, folder)
        shutil.copytree(ROOT / ".ci", folder / ".ci")
        self.python(refuses=False)

    def python(self, refuses: bool) -> None:
        path = self.folder / "fake-python"
        path.write_text(FAKE_PYTHON.format(refuses=int(refuses)))
        path.chmod(0o755)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "PYTEST"))}
        environment["PYTHON"] = str(self.folder / "fake-python")
        return subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True)

    def calls(self) -> list[str]:
        """Return the programs that were called since the last time, pip by its last argument."""
        path = self.folder / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return [f"pip {line.split()[-1]}" if " pip " in line else line for line in lines]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_demo_installs_torch_first_and_only_once(checkout: Checkout) -> None:
    assert checkout.run("make", "demo").returncode == 0
    assert checkout.calls() == ["pip torch", "pip .[test]", "lightning-mpq"]
    assert checkout.run("make", "demo").returncode == 0
    assert checkout.calls() == ["lightning-mpq"]


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_a_change_of_requirements_installs_again(checkout: Checkout, name: str) -> None:
    checkout.run("make", "demo")
    checkout.calls()
    stamp = (checkout.folder / ".venv" / "installed").stat().st_mtime
    os.utime(checkout.folder / name, (stamp + 10, stamp + 10))
    checkout.run("make", "demo")
    assert checkout.calls() == ["pip torch", "pip .[test]", "lightning-mpq"]


def test_ci_runs_lint_types_docs_and_tests(checkout: Checkout) -> None:
    finished = checkout.run(".ci/run")
    assert finished.returncode == 0, finished.stderr
    docs = "sphinx-build -q -n -W --keep-going docs build/docs"
    _, _, *lint, one, other, tests = checkout.calls()
    assert lint == ["ruff check .", "ruff format --check ."]
    assert {one, other} == {"mypy", docs}  # side by side
    assert tests == "pytest -n 2 --dist loadfile"


def test_a_failing_installation_is_not_taken_for_done(checkout: Checkout) -> None:
    checkout.run("make", "demo")
    checkout.calls()
    (checkout.folder / ".venv" / "installed").unlink()
    working = (checkout.folder / ".venv" / "bin" / "python").read_text()
    (checkout.folder / ".venv" / "bin" / "python").write_text("#!/bin/sh\nexit 1\n")
    assert checkout.run("make", "demo").returncode != 0
    assert checkout.calls() == []
    (checkout.folder / ".venv" / "bin" / "python").write_text(working)
    assert checkout.run("make", "demo").returncode == 0
    assert checkout.calls() == ["pip torch", "pip .[test]", "lightning-mpq"]


def test_each_peer_gets_an_environment_with_torch_first():
    said = subprocess.run(["make", "-n", "-B", "peers"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for path in (ROOT / "benchmarks" / "runs" / "peers" / "requirements").iterdir():
        own = [line for line in said.splitlines() if f".peers/{path.stem}" in line]
        assert own[0].endswith(f"-m venv --clear .peers/{path.stem}")
        assert own[1].endswith("install --disable-pip-version-check torch==2.13.0")
        assert own[2].endswith(f"torch==2.13.0 numpy safetensors -r {path.relative_to(ROOT)}")
        for line in path.read_text().splitlines():
            assert "==" in line, f"{line} is not pinned"


def test_an_unsuitable_python_is_a_sentence(checkout: Checkout) -> None:
    checkout.python(refuses=True)
    finished = checkout.run("make", "demo")
    assert finished.returncode != 0
    assert "needs Python 3.11, 3.12 or 3.13, and" in finished.stderr
    assert "is not: Python 3.9.2. Name another one" in finished.stderr
    assert not (checkout.folder / ".venv").exists()


@pytest.mark.parametrize(("version", "fits"), [((3, 10), False), ((3, 11), True), ((3, 13), True), ((3, 14), False)])
def test_the_check_takes_what_pyproject_takes(version: tuple[int, int], fits: bool) -> None:
    line = next(line for line in (ROOT / "Makefile").read_text().splitlines() if "version_info" in line)
    expression = line.split("sys.exit(not ")[1].split(")' ||")[0].replace("sys.version_info[:2]", "version")
    assert eval(expression, {"version": version}) == fits
    assert 'requires-python = ">=3.11,<3.14"' in (ROOT / "pyproject.toml").read_text()
