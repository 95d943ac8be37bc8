"""What the runner refuses: answers that lack something, are off the grid they claim, or whose bytes do not add up."""

from __future__ import annotations

from math import isfinite

import torch

from ...tools.apart import RefusedError
from .grid import fault
from .records import Answer, Task, total_bytes


def checked(task: Task, answer: Answer) -> Answer:
    """Return the answer if it is one.

    Raises:
        RefusedError: If a layer is missing, or another one is there; if a weight has another shape, is not finite or
            off the grid that it claims; if bytes do not add up or exceed the budget; if anything else was changed that
            is no bias or statistic of the network; if seconds or memory are no measurements.
    """
    _check_layers(task, answer)
    counted = total_bytes(task, answer.layers)
    if counted != answer.stored_bytes:
        raise RefusedError(f"It says {answer.stored_bytes!r} bytes, and its layers take {counted}.")
    if counted > task.budget_bytes:
        raise RefusedError(f"Its layers take {counted:,} bytes of {task.budget_bytes:,}.")
    _check_others(task, answer)
    for name in ("seconds", "processor_seconds", "peak_bytes"):
        value = getattr(answer, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not isfinite(value) or value < 0:
            raise RefusedError(f"Its {name} are {value!r}, expected a number from 0.")
    return answer


def _check_layers(task: Task, answer: Answer) -> None:
    for what, names in (
        ("lacks the layer", task.layers.keys() - answer.layers.keys()),
        ("has a layer that was not asked for,", answer.layers.keys() - task.layers.keys()),
    ):
        if names:
            raise RefusedError(f"It {what} {min(names)!r} ({len(names)} in all).")
    for name, size in task.layers.items():
        layer = answer.layers[name]
        for key in ("bits", "block"):
            if type(getattr(layer, key)) is not int:
                raise RefusedError(f"The layer {name!r}: its {key} is {getattr(layer, key)!r}, expected an integer.")
        if found := fault(size, layer, task.state[f"{name}.weight"]):
            raise RefusedError(f"The layer {name!r}: {found}.")


def _check_others(task: Task, answer: Answer) -> None:
    quantized = {f"{name}.weight" for name in task.layers}
    for key, value in answer.others.items():
        if key not in task.state or key in quantized:
            why = "which is quantized" if key in quantized else "which the network does not have"
            raise RefusedError(f"It gives back {key!r}, {why}.")
        if value.shape != task.state[key].shape:
            raise RefusedError(f"{key!r} has the shape {list(value.shape)}, expected {list(task.state[key].shape)}.")
        if not torch.isfinite(value).all():
            raise RefusedError(f"{key!r} is not finite everywhere.")
        bias_or_statistic = key.endswith(("bias", "running_mean", "running_var", "num_batches_tracked"))
        if not bias_or_statistic and not torch.equal(value, task.state[key]):
            raise RefusedError(f"It has changed {key!r}, expected nothing but biases and statistics beside the layers.")
