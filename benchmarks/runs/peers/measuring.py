"""One answer of one peer, measured."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from ...tools.apart import RefusedError
from ...tools.quality import BETTER_ABOVE, BETTER_BELOW
from ...tools.results import Row
from .asking import Peer, answered
from .grid import FLOATS
from .problems import Problem
from .records import Answer, CannotError, Task

FIGURES = ("accuracy", *BETTER_ABOVE, *BETTER_BELOW)


def row_of(problem: Problem, peer: Peer, bits: float, seed: int, seconds: float) -> Row:
    """Return what one peer makes of a network under a budget, or why it cannot."""
    task = problem.task(bits, seed, peer.options, peer.zero_points)
    try:
        with TemporaryDirectory() as folder:
            answer = answered(peer.start(seconds), task, Path(folder))
    except (CannotError, RefusedError) as error:
        kind = "cannot" if isinstance(error, CannotError) else "refused"
        return {"budget_bytes": task.budget_bytes, kind: str(error)}
    return {"budget_bytes": task.budget_bytes, **summary(task, answer), **problem.quality(answer)}


def summary(task: Task, answer: Answer) -> Row:
    """Return an answer in a few figures."""
    weights = {name: size.rows * size.columns for name, size in task.layers.items()}
    widths = [answer.layers[name].bits for name in task.layers]
    return {
        "stored_bytes": answer.stored_bytes,
        "code_bits": sum(n * width for n, width in zip(weights.values(), widths, strict=True)) / sum(weights.values()),
        "widths": "".join("f" if width in FLOATS else str(width) for width in widths),
        "seconds": round(answer.seconds, 2),
        "processor_seconds": round(answer.processor_seconds, 2),
        "peak_mib": round(answer.peak_bytes / 2**20),
        "versions": " ".join(f"{name} {version}" for name, version in answer.versions.items()),
        "note": answer.note or None,
    }


def with_all_figures(row: Row) -> Row:
    """Return a row with those figures too that it lacks, None."""
    head = ("network", "seed", "budget", "peer", "budget_bytes", "stored_bytes", "code_bits", "widths", "unseen_loss")
    tail = ("seconds", "processor_seconds", "peak_mib", "cannot", "refused", "note", "versions")
    return dict.fromkeys((*head, *FIGURES, *tail)) | row


def with_six_digits(row: Row) -> Row:
    """Return a row whose fractions have six digits.

    Example:
        >>> with_six_digits({"unseen_loss": 0.0123456789, "stored_bytes": 12345678})
        {'unseen_loss': 0.0123457, 'stored_bytes': 12345678}
    """
    return {key: float(f"{value:.6g}") if isinstance(value, float) else value for key, value in row.items()}
