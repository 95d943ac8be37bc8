"""Tasks and answers as files, so that neither side imports the other's packages."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from .grid import Layer, QuantizedLayer
from .records import Answer, CannotError, Task

TASK, WEIGHTS, SAMPLES = "task.json", "weights.safetensors", "samples.safetensors"
ANSWER, TENSORS = "answer.json", "answer.safetensors"


def write_task(folder: Path, task: Task) -> None:
    """Write a task's three files."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = {name: value for name, value in task._asdict().items() if name not in ("state", "inputs", "targets")}
    (folder / TASK).write_text(json.dumps(plain))
    save_file(_separate(task.state), folder / WEIGHTS)
    save_file(_separate({"inputs": task.inputs, "targets": task.targets}), folder / SAMPLES)


def read_task(folder: Path) -> Task:
    """Read what `write_task` wrote."""
    found = json.loads((folder / TASK).read_text())
    found["layers"] = {name: Layer(*size) for name, size in found["layers"].items()}
    found |= {"state": load_file(folder / WEIGHTS), **load_file(folder / SAMPLES)}
    return Task(**found)


def write_answer(folder: Path, answer: Answer) -> None:
    """Write an answer's two files, that which says it is whole last."""
    tensors = {f"other/{key}": value for key, value in answer.others.items()}
    layers = {}
    for name, layer in answer.layers.items():
        tensors |= {f"{key}/{name}": getattr(layer, key) for key in ("weight", "scale", "zero_point")}
        layers[name] = {"bits": layer.bits, "block": layer.block}
    save_file(_separate(tensors), folder / TENSORS)
    plain = {name: value for name, value in answer._asdict().items() if name != "others"}
    (folder / ANSWER).write_text(json.dumps({**plain, "layers": layers}))


def write_cannot(folder: Path, reason: str) -> None:
    """Write why there is no answer."""
    (folder / ANSWER).write_text(json.dumps({"cannot": reason}))


def read_answer(folder: Path) -> Answer:
    """Read what `write_answer` wrote.

    Raises:
        CannotError: If the peer says that it cannot.
        OSError: If a file is missing.
        KeyError: If something is missing in one.
    """
    plain = json.loads((folder / ANSWER).read_text())
    if "cannot" in plain:
        raise CannotError(plain["cannot"])
    tensors = load_file(folder / TENSORS)
    layers = {
        name: QuantizedLayer(
            tensors[f"weight/{name}"],
            said["bits"],
            tensors[f"scale/{name}"],
            tensors[f"zero_point/{name}"],
            said["block"],
        )
        for name, said in plain["layers"].items()
    }
    others = {key.removeprefix("other/"): value for key, value in tensors.items() if key.startswith("other/")}
    return Answer(**{**plain, "layers": layers}, others=others)


def versions_of(distributions: Iterable[str]) -> dict[str, str]:
    """Return the versions of installed distributions."""
    return {name: metadata.version(name) for name in distributions}


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies that share no memory, which safetensors refuses."""
    return {name: value.detach().clone().contiguous() for name, value in tensors.items()}
