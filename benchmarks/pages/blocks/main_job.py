"""The main job: figure and table."""

from __future__ import annotations

from typing import Any

from ...tools.accuracy import standard_error
from ...tools.results import Content
from .tables import table

_HEAD = ("budget, average bits", "chosen policy", "bytes", "smaller", "divergence", "additive policy", "uniform")


def block(content: Content, results: str) -> str:
    """Return the figure and the table of the main job."""
    rows = content["results"]
    by_key = {(row["budget_bits"], row["model"]): row for row in rows}
    budgets = sorted({row["budget_bits"] for row in rows})
    base = by_key[budgets[0], "float"]
    cells = []
    for budget in budgets:
        chosen, additive, uniform = (by_key[budget, model] for model in ("chosen", "additive", "uniform"))
        cells.append(
            (
                f"{budget:g}",
                f"**{_percent(chosen)}**",
                f"{chosen['stored_bytes']:,}",
                f"{base['stored_bytes'] / chosen['stored_bytes']:.1f}x",
                f"{chosen['measured_loss']:.5f}",
                f"{_percent(additive)}, {additive['measured_loss']:.5f}",
                f"{_percent(uniform)}, {uniform['measured_loss']:.5f} ({uniform['average_bits']:.2f} bits)",
            )
        )
    lines = [
        f"![Test accuracy and divergence against stored bytes]({results}/main_job.svg)",
        "",
        f"ResNet-20 on Fashion-MNIST, {content['settings']['epochs']} epochs, one seed, no fine-tuning, 10,000 "
        f"test images; float: {_percent(base)} in {base['stored_bytes']:,} bytes. Bytes are those of the whole model, "
        "scales and float leftovers included. One standard error of an accuracy is "
        f"{standard_error(base['test_accuracy']):.2f} points: below that, differences are noise, and the divergence "
        "from the float model (KL in nats per calibration image, after repair) says more.",
        "",
        *table(_HEAD, cells, left=0),
    ]
    return "\n".join(lines)


def _percent(row: Any) -> str:
    return f"{100 * row['test_accuracy']:.2f} %"
