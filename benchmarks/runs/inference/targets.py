"""How much faster than float32 the Linear layers are meant to be."""

from __future__ import annotations

from ...tools.selecting import Rows, having
from ...tools.targets import Target, at_least

_PLACES = {"12 x linear-1024x4096": "from memory", "linear-1024x4096": "in the cache"}
_LEAST = (
    ("auto-round, float32", 1, range(2, 9), 1.5),
    ("auto-round, float32", 64, range(2, 9), 1.0),
    ("onnxruntime", 1, (2, 4, 8), 8.0),
)
"""Way, batch, widths, times as fast as float32."""


def targets(rows: Rows) -> list[Target]:
    """Return the targets that these rows can answer."""
    found = []
    for model, place in _PLACES.items():
        for way, batch, widths, least in _LEAST:
            for bits in widths:
                for row in having(rows, model=model, way=way, batch=batch, bits=bits)[:1]:
                    title = f"{way}, {model}, weights {place}, batch {batch}, {bits} bits, times float32"
                    found.append(at_least(title, row["over_float32"], least))
    return found
