"""What every adapter does around its own few lines: read the task, measure, write the answer."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ...tools.memory import peak_bytes, restart_peak
from .exchange import read_task, versions_of, write_answer, write_cannot
from .grid import QuantizedLayer
from .records import Answer, CannotError, Task, total_bytes


class Found(NamedTuple):
    """What an adapter's own lines return: see `Answer`."""

    layers: Mapping[str, QuantizedLayer]
    others: Mapping[str, Tensor] = {}
    note: str = ""


def run(quantize: Callable[[Task], Found], distributions: Sequence[str], words: Sequence[str] | None = None) -> None:
    """Answer the task in the folder that the command line names.

    Args:
        quantize: The adapter's own lines.
        distributions: What the versions of are recorded.
        words: The command line; None for that of the process.
    """
    [folder] = map(Path, sys.argv[1:] if words is None else words)
    task = read_task(folder)
    random.seed(task.seed)
    torch.manual_seed(task.seed)
    restart_peak()
    began, processor = time.perf_counter(), time.process_time()
    try:
        found = quantize(task)
    except CannotError as error:
        write_cannot(folder, str(error))
        return
    seconds, processor_seconds = time.perf_counter() - began, time.process_time() - processor
    taken = total_bytes(task, found.layers)
    versions = versions_of(["torch", *distributions])
    write_answer(
        folder,
        Answer(found.layers, found.others, taken, seconds, processor_seconds, peak_bytes(), versions, found.note),
    )


def per_row(weight: Tensor, bits: int, scale: Tensor, zero_point: Tensor | float | None = None) -> QuantizedLayer:
    """Return a layer with a scale a row, or one of the whole tensor.

    Args:
        weight: The dequantized weight.
        bits: Width.
        scale: As many numbers as rows, or one.
        zero_point: The code of zero, for each or of all; None for integers from -2**(bits - 1).
    """
    middle = 2.0 ** (bits - 1) if zero_point is None else zero_point
    zero = middle.detach().float() if isinstance(middle, Tensor) else torch.tensor([middle])
    zero = zero.reshape(-1, 1) if zero.numel() > 1 else zero.reshape(1)
    columns = weight[0].numel()
    return QuantizedLayer(weight.detach().float(), bits, scale.detach().float().reshape(-1, 1), zero, columns)


def widest_uniform(task: Task) -> int:
    """Return the largest width that all layers may have, with a scale a row, within the budget.

    Raises:
        CannotError: If not even two bits fit.
    """
    for bits in range(8, 1, -1):
        layers = {
            name: per_row(task.state[f"{name}.weight"], bits, torch.ones(size.rows))
            for name, size in task.layers.items()
        }
        if total_bytes(task, layers) <= task.budget_bytes:
            return bits
    raise CannotError(f"two bits everywhere take more than {task.budget_bytes:,} bytes")
