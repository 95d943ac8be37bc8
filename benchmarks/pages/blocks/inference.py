"""Speeds over float32: a table."""

from __future__ import annotations

from ...tools.results import Content
from ...tools.selecting import Rows, having
from .tables import table

_WAYS = {
    "bfloat16": "float model in bfloat16",
    "plain, float32": "dequantized at each call (default)",
    "fast, float32": '`memory="fast"`: dequantized once',
    "auto-round, float32": "kernel auto-round",
    "torch-int4, bfloat16": "kernel torch-int4, layer in bfloat16, up to 4 bits",
    "torch-int8, bfloat16": "kernel torch-int8, layer in bfloat16",
    "torchao IntxWeightOnlyConfig": "torchao, `IntxWeightOnlyConfig`",
    "onnxruntime": "onnxruntime on our file, inputs in 8 bits",
    "onnxruntime, float32 products": "onnxruntime on our file, inputs in float32",
}
_CASES = ("linear-1024x4096", 1), ("12 x linear-1024x4096", 1), ("12 x linear-1024x4096", 64), ("resnet20", 1)


def block(content: Content, results: str) -> str:
    """Return the least and the greatest over the widths."""
    rows = content["results"]
    cases = [(model, batch) for model, batch in _CASES if having(rows, model=model, batch=batch)]
    cells = []
    for way, title in _WAYS.items():
        found = [_cell(having(rows, model=model, batch=batch, way=way)) for model, batch in cases]
        if any(found):
            cells.append([title, *found])
    return "\n".join(table(["times as fast as float32", *(f"{m}, batch {b}" for m, b in cases)], cells))


def _cell(rows: Rows) -> str:
    found = [row["over_float32"] for row in rows]
    return f"{min(found):.2g} .. {max(found):.2g}" if found else ""
