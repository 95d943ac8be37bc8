"""Write figures and tables of README and documentation from the committed results.

A number and its picture cannot disagree then.

python -m benchmarks.pages          rewrites the blocks in README.md and docs, RESULTS.md, and the figures
python -m benchmarks.pages --check  fails if a page is not what the results say
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..figures import draw_all
from ..tools.results import RESULTS
from .blocks import BLOCKS
from .filling import filled
from .targets_page import targets_page

ROOT = Path(__file__).parents[2]


def main(words: Sequence[str] | None = None) -> None:
    """Rewrite or check."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.pages", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="only compare")
    parser.add_argument("pages", type=Path, nargs="*", help="Markdown files; default README.md and all in docs")
    arguments = parser.parse_args(words)
    pages = arguments.pages or default_pages()
    wanted = {**filled(pages, BLOCKS), RESULTS / "RESULTS.md": targets_page()}
    if arguments.check:
        for path, text in wanted.items():
            if not path.exists() or path.read_text() != text:
                sys.exit(f"{path.name} is not what benchmarks/results say: run python -m benchmarks.pages")
        return
    for path, text in wanted.items():
        path.write_text(text)
    print("written:", *wanted, *draw_all())


def default_pages() -> list[Path]:
    """Return the Markdown files of the repository that may have blocks."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


if __name__ == "__main__":
    main()
