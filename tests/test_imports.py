"""Data flows one way: a file imports only from rows above it, and heavy packages live in one room each."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "lightning_mpq"
ROWS = [
    {"distributed", "errors", "files", "patterns", "policy", "staged_work"},
    {"batches", "layers", "shadowing", "held_weights"},
    {"groups", "calling", "paused_passes"},
    {"candidates", "quantizers"},
    {"rounded_weights"},
    {"curvature", "mean_outputs"},
    {"allocation", "modules", "calibration", "rounding", "sequential_rounding", "correction", "bias_correction"},
    {"latency", "export", "finetune", "options", "repair", "quantize"},
    {"report"},
    {"workbench"},
    {"verdict", "reexpansion", "closed_loop", "planning", "rehearsal"},
    {"pipeline", "plain_loading", "strategies", "trainer_tools", "training"},
    {"job"},
    {"callback"},
    {"demo"},
    {"cli"},
]
RANK = {name: row for row, names in enumerate(ROWS) for name in names}
ROOMS = {
    "mip": {"allocation"},
    "hydra": {"cli"},
    "omegaconf": {"cli"},
    "lightning": {"callback", "job", "plain_loading", "strategies", "trainer_tools", "training", "cli", "demo"},
    "matplotlib": {"allocation"},
    "sklearn": {"demo"},
    **dict.fromkeys(("onnx", "onnxruntime", "onnxscript", "onnx_ir", "compressed_tensors", "torchao"), {"export"}),
}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if "conf" not in path.parts and path.parent != PACKAGE / "conf")


def imports(path: Path) -> list[tuple[str, bool]]:
    """Return (top-level name, whether it is of this package) for each import that runs."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for node in ast.walk(block)
    }
    found = []
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found += [(alias.name.partition(".")[0], False) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            depth = len(path.relative_to(PACKAGE).parts)
            if node.level == depth:  # reaches the root of the package
                found += [((node.module or alias.name).partition(".")[0], True) for alias in node.names]
            elif node.level == 0:
                found.append(((node.module or "").partition(".")[0], False))
    return found


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    room = room_of(path)
    if room == "__init__":
        return
    assert room in RANK, f"{room} has no row; give it one"
    for name, own in imports(path):
        if own:
            assert name == room or RANK[name] <= RANK[room], f"{path} imports {name}, which is below it"
            assert name != "__init__"
        else:
            assert room in ROOMS.get(name, {room}), f"{path} imports {name}, which lives in {ROOMS[name]}"


def test_every_part_has_a_row():
    assert {room_of(path) for path in FILES} - {"__init__"} == set(RANK)
