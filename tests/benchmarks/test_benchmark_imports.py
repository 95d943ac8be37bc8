"""Within benchmarks a folder imports only from those above it, and runs do not import each other."""

import ast
from pathlib import Path

import pytest

import benchmarks

ROOT = Path(benchmarks.__file__).parent
ORDER = ["tools", "recorded_instances", "problems", "methods", "runs", "figures", "pages"]
FILES = sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob("*.py") if path.parent != ROOT)


def imported(path: str) -> set[tuple[str, ...]]:
    """Return the files and folders within benchmarks that a file imports, as parts of their paths."""
    folder = list(Path(path).parts[:-1])
    found = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = folder[: len(folder) + 1 - node.level] + [part for part in (node.module or "").split(".") if part]
            found |= {tuple(base) if len(base) > 1 else (*base, alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not (node.module or "").startswith("benchmarks"), f"{path}: import relatively"
    return found


@pytest.mark.parametrize("path", FILES)
def test_a_file_imports_from_folders_above_only(path):
    own = Path(path).parts
    for other in imported(path):
        assert ORDER.index(other[0]) <= ORDER.index(own[0]), f"{path} imports {'.'.join(other)}, which is below it"
        if own[0] == other[0] == "runs":
            assert other[1] in (own[1], "arguments", "ending"), f"{path} imports another run, {other[1]}"
        if own[0] in ("figures", "pages"):
            assert other[0] not in ("problems", "methods", "runs"), f"{path} shows results and must not measure"


@pytest.mark.parametrize("path", FILES)
def test_files_are_short(path):
    assert len((ROOT / path).read_text().splitlines()) <= 150, "one idea a file"
