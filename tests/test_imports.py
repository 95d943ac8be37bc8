"""Data flows one way: a file imports only from folders above its own, no files import each other in a circle, and heavy
packages live in one folder each. Imports that only type checkers see, and those inside of functions, count."""

import ast
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "lightning_mpq"
ORDER = [
    "errors",
    "tools",
    "grids",
    "schemes",
    "policy",
    "network",
    "inputs",
    "groups",
    "quantizers",
    "rounding",
    "curvature",
    "allocation",
    "modules",
    "options",
    "repair",
    "finetune",
    "report",
    "export",
    "targets",
    "pipeline",
    "trainer",
    "moved",
    "plain_loading",
    "demo",
    "cli",
]
"""Folders, and files at the root, each of which may import from those before it."""
AT_HOME = {
    "mip": {"allocation"},
    "hydra": {"cli"},
    "omegaconf": {"cli"},
    "lightning": {"trainer", "cli", "demo"},
    "matplotlib": {"allocation"},
    "sklearn": {"demo"},
    **dict.fromkeys(("onnx", "onnxruntime", "onnxscript", "onnx_ir", "compressed_tensors", "torchao"), {"export"}),
    **dict.fromkeys(("openvino", "gguf", "llama_cpp"), {"targets"}),
}
FILES = {
    str(path.relative_to(PACKAGE).with_suffix("")): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.relative_to(PACKAGE).parts[0] != "conf"
}


def file_of(parts: list[str], name: str) -> str:
    """Return the file behind ``from parts import name``."""
    module = "/".join(parts)
    known = [f"{module}/{name}".strip("/"), module]
    return next(file for stem in known for file in (stem, f"{stem}/__init__".strip("/")) if file in FILES)


@cache
def own_imports(name: str) -> frozenset[str]:
    """Return the files that a file imports, wherever the import stands."""
    folder = list(FILES[name].relative_to(PACKAGE).parts[:-1])
    found = set()
    for node in ast.walk(ast.parse(FILES[name].read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            parts = folder[: len(folder) + 1 - node.level] + (node.module or "").split(".")
            found |= {file_of([part for part in parts if part], alias.name) for alias in node.names}
    return frozenset(found)


def other_imports(name: str) -> set[str]:
    """Return the packages of others that a file imports."""
    tree = list(ast.walk(ast.parse(FILES[name].read_text())))
    names = [alias.name for node in tree if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in tree if isinstance(node, ast.ImportFrom) and not node.level]
    return {module.partition(".")[0] for module in names}


def part_of(name: str) -> str:
    return name.partition("/")[0]


@pytest.mark.parametrize("name", [name for name in FILES if name != "__init__"])
def test_a_file_imports_from_folders_above_only(name):
    assert part_of(name) in ORDER, f"{name} has no place in the order; give it one"
    for other in own_imports(name):
        assert part_of(other) in ORDER, f"{name} imports {other}"
        assert ORDER.index(part_of(other)) <= ORDER.index(part_of(name)), f"{name} imports {other}, which is below it"
    for package in other_imports(name) & set(AT_HOME):
        assert part_of(name) in AT_HOME[package], f"{name} imports {package}, which lives in {AT_HOME[package]}"


def test_no_files_import_each_other_in_a_circle():
    list(TopologicalSorter({name: own_imports(name) for name in FILES}).static_order())  # raises CycleError


def test_every_name_in_the_order_is_there():
    assert set(ORDER) == {part_of(name) for name in FILES} - {"__init__"}


def test_few_files_stand_at_the_root():
    assert len([name for name in FILES if "/" not in name]) <= 8
