"""Blocks of Markdown that are written from results, between markers, in any number of files."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from ..tools.results import RESULTS, Content, read_results

Write = Callable[[Content, str], str]
"""Results, and the path from the page to their folder, to what stands in a block."""
_MARKER = re.compile(r"<!-- (\w+):(begin|end) -->")


def filled(pages: Iterable[Path], blocks: Mapping[str, tuple[str, Write]]) -> dict[Path, str]:
    """Return each page with what stands between its markers replaced; those without markers are left out.

    Args:
        pages: Markdown files.
        blocks: Name of the markers, ``<!-- NAME:begin -->`` and ``<!-- NAME:end -->``, to the result file and the
            function that writes what stands between them.

    Raises:
        ValueError: If a marker has no partner, or a name that is not among ``blocks``.
    """
    texts = {page: page.read_text() for page in pages}
    return {page: _filled(page, text, blocks) for page, text in texts.items() if _MARKER.search(text)}


def _filled(page: Path, text: str, blocks: Mapping[str, tuple[str, Write]]) -> str:
    found = [(match[1], match[2], match) for match in _MARKER.finditer(text)]
    results = Path(os.path.relpath(RESULTS, page.parent)).as_posix()
    parts, position = [], 0
    for (name, edge, begin), (other, other_edge, end) in zip(found[::2], [*found[1::2], ("", "", None)], strict=False):
        if (edge, other_edge, other) != ("begin", "end", name) or end is None:
            raise ValueError(f"{page}: the marker <!-- {name}:{edge} --> has no partner.")
        if name not in blocks:
            raise ValueError(f"{page}: there is no block {name!r}; there are {', '.join(blocks)}.")
        source, write = blocks[name]
        parts += [text[position : begin.end()], "\n", write(read_results(source), results), "\n"]
        position = end.start()
    return "".join(parts) + text[position:]
