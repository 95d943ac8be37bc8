"""Write README's figures and tables from the committed results, so that a number and its picture cannot disagree.

python -m benchmarks.readme          rewrites the blocks in README.md and the figures
python -m benchmarks.readme --check  fails if README.md is not what the results say
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from . import readme_blocks
from .figures import RESULTS, draw_all, read

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
DEMANDS = ROOT / "benchmarks" / "RESULTS.md"
BLOCKS: dict[str, tuple[str, Callable[[Mapping[str, Any]], str]]] = {
    "main_job": ("main_job-fashion_mnist", readme_blocks.main_job),
    "compression": ("compression", readme_blocks.compression),
    "repair": ("repair", readme_blocks.repair),
    "held_out": ("held_out", readme_blocks.held_out),
    "fidelity": ("fidelity", readme_blocks.fidelity),
    "finetune": ("finetune", readme_blocks.finetune),
    "inference": ("inference", readme_blocks.inference),
}
"""Name of the markers in README to the result file and the function that writes what stands between them."""


def main() -> None:
    """Rewrite or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only compare")
    arguments = parser.parse_args()
    wanted = {README: with_blocks(README.read_text()), DEMANDS: demands_page()}
    if arguments.check:
        for path, text in wanted.items():
            if not path.exists() or path.read_text() != text:
                sys.exit(f"{path.name} is not what benchmarks/results say: run python -m benchmarks.readme")
        return
    figures = draw_all()
    for path, text in wanted.items():
        path.write_text(text)
    print("written:", *wanted, *figures)


def with_blocks(text: str) -> str:
    """Return README with what stands between each pair of markers replaced."""
    for name, (source, write) in BLOCKS.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        if begin in text:
            before, rest = text.split(begin)
            _, after = rest.split(end)
            text = f"{before}{begin}\n{write(read(source))}\n{end}{after}"
    return text


def demands_page() -> str:
    """Return every figure that was demanded beside the one that was measured, as a Markdown page."""
    lines = ["# What was demanded and what was measured", "", "Written by `python -m benchmarks.readme`.", ""]
    for path in sorted(RESULTS.glob("*.json")):
        content = json.loads(path.read_text())
        where = content["environment"]
        lines += [
            f"## {path.stem}",
            "",
            f"`benchmarks/results/{path.name}`, {where['date'][:10]}, {where['cpu']}, {where['cores']} cores, "
            f"{where['torch_threads']} torch threads, torch {where['packages']['torch']}.",
            "",
            "| what | demanded | measured | met |",
            "| --- | --- | --- | --- |",
        ]
        for demand in content["demands"]:
            measured = demand["measured"]
            shown = f"{measured:.4g}" if isinstance(measured, float) else str(measured)
            lines.append(
                f"| {demand['name']} | {demand['demanded']} | {shown} | {'yes' if demand['met'] else '**no**'} |"
            )
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
