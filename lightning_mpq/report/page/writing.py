"""Self-contained pages: markup, style, script, the drawing library and the data in one file that needs no network.

The library is `Observable Plot <https://observablehq.com/plot/>`_ 0.6.17 on `D3 <https://d3js.org>`_ 7.9.0, both as
their authors publish them, in ``vendor/`` with their licences (ISC).
"""

from __future__ import annotations

import base64
import gzip
import html
import json
import math
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from ...tools.files import write_text_atomically

LIBRARIES = ("d3", "plot")
LONGEST_PLAIN = 300_000
"""Characters of JSON up to which the data stand in the page as they are; beyond, compressed, to keep it below 1 MB."""


def write_page(path: Path, data: Mapping[str, Any], kind: str = "report") -> Path:
    """Write a page, whole or not at all, and return where.

    Args:
        path: Name of the file.
        data: Plain JSON values.
        kind: Which page: "report" or "sweep".
    """
    return write_text_atomically(path, page(data, kind))


def page(data: Mapping[str, Any], kind: str = "report") -> str:
    """Return the text of a page; see `write_page`."""
    return Template(_asset("page.html")).substitute(
        title=html.escape(kind),
        kind=html.escape(kind),
        style=_asset("page.css"),
        data=embedded(data),
        libraries="\n".join(_library(name) for name in LIBRARIES),
        script="\n".join(_asset(name) for name in ("common.js", f"{kind}.js")),
    )


def embedded(data: Mapping[str, Any]) -> str:
    r"""Return an element of JSON that no content can end: every ``<``, ``>`` and ``&`` of a string is escaped.

    Numbers that JSON does not have (NaN, infinities) become strings.

    Example:
        >>> embedded({"name": "</script>", "loss": float("nan")})
        '<script type="application/json" id="data">{"name":"\\u003c/script\\u003e","loss":"nan"}</script>'
    """
    text = json.dumps(_finite(data), separators=(",", ":"), allow_nan=False)
    if len(text) > LONGEST_PLAIN:
        packed = base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()
        return f'<script type="application/gzip" id="data">{packed}</script>'
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return f'<script type="application/json" id="data">{text}</script>'


def _finite(value: Any) -> Any:
    """Return the same values with text for numbers that JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(key): _finite(each) for key, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, (list, tuple)) else value


def _library(name: str) -> str:
    """Return a library of others as an element, its licence before it."""
    return f"<script>\n/*!\n{_asset(f'vendor/{name}.LICENSE')}*/\n{_asset(f'vendor/{name}.min.js')}</script>"


@cache
def _asset(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")
