"""Write README's figures and tables from the committed results, so that a number and its picture cannot disagree.

python -m benchmarks.readme          rewrites the blocks in README.md and the figures
python -m benchmarks.readme --check  fails if README.md is not what the results say
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .figures import RESULTS, draw_all, read, standard_error

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
DEMANDS = ROOT / "benchmarks" / "RESULTS.md"
BEGIN, END = "<!-- main_job:begin -->", "<!-- main_job:end -->"


def main() -> None:
    """Rewrite or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only compare")
    arguments = parser.parse_args()
    wanted = {
        README: with_block(README.read_text(), main_job_block(read("main_job-fashion_mnist"))),
        DEMANDS: demands_page(),
    }
    if arguments.check:
        for path, text in wanted.items():
            if not path.exists() or path.read_text() != text:
                sys.exit(f"{path.name} is not what benchmarks/results say: run python -m benchmarks.readme")
        return
    figures = draw_all()
    for path, text in wanted.items():
        path.write_text(text)
    print("written:", *wanted, *figures)


def with_block(text: str, block: str) -> str:
    """Return a text with what stands between the two markers replaced."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{block}\n{END}{after}"


def main_job_block(content: Mapping[str, Any]) -> str:
    """Return the figure and the table of one result file as Markdown."""
    rows = content["results"]
    by_key = {(row["budget_bits"], row["model"]): row for row in rows}
    budgets = sorted({row["budget_bits"] for row in rows})
    base = by_key[budgets[0], "float"]
    lines = [
        "![Test accuracy and divergence against stored bytes](benchmarks/results/main_job.svg)",
        "",
        f"ResNet-20 on Fashion-MNIST, {content['settings']['epochs']} epochs, one seed, no fine-tuning, 10,000 "
        f"test images; float: {_percent(base)} in {base['stored_bytes']:,} bytes. Bytes are those of the whole model, "
        "scales and float leftovers included. One standard error of an accuracy is "
        f"{standard_error(base['test_accuracy']):.2f} points: below that, differences are noise, and the divergence "
        "from the float model (KL in nats per calibration image, after repair) tells more.",
        "",
        "| budget, average bits | chosen plan | bytes | smaller | divergence | additive plan | uniform |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for budget in budgets:
        chosen, additive, uniform = (by_key[budget, model] for model in ("chosen", "additive", "uniform"))
        lines.append(
            f"| {budget:g} | **{_percent(chosen)}** | {chosen['stored_bytes']:,} | "
            f"{base['stored_bytes'] / chosen['stored_bytes']:.1f}x | {chosen['measured_loss']:.5f} | "
            f"{_percent(additive)}, {additive['measured_loss']:.5f} | "
            f"{_percent(uniform)}, {uniform['measured_loss']:.5f} ({uniform['average_bits']:.2f} bits) |"
        )
    return "\n".join(lines)


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


def _percent(row: Mapping[str, Any]) -> str:
    return f"{100 * row['test_accuracy']:.2f} %"


if __name__ == "__main__":
    main()
