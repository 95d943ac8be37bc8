"""The figures, drawn from the committed results; the same results give the same files."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ..tools.results import RESULTS, Content, read_results
from . import compression, fidelity, main_job, peers
from .style import pyplot

FIGURES: dict[str, tuple[str, Callable[[Content], Any]]] = {
    "main_job": ("main_job-fashion_mnist", main_job.draw),
    "compression": ("compression", compression.draw),
    "fidelity": ("fidelity", fidelity.draw),
    "peers": ("peers", peers.draw),
}
"""Name of the file to the results that it shows and the function that draws them."""


def draw_all(folder: Path = RESULTS, names: Iterable[str] = tuple(FIGURES)) -> list[Path]:
    """Draw every figure, or those of some names; return the files."""
    drawn = []
    for name in names:
        source, draw = FIGURES[name]
        figure = draw(read_results(source))
        figure.tight_layout()
        path = folder / f"{name}.svg"
        figure.savefig(path, metadata={"Date": None})
        pyplot().close(figure)
        drawn.append(path)
    return drawn
