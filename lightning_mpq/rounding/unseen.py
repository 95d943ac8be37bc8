"""Why nothing was seen of what a weight is multiplied with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..network.calibration import Calibration
from ..network.hooks import hooked
from ..network.isolation import isolated
from ..network.layer_kinds import kind_of
from ..network.named_weights import held_by

EMPTY = (
    "These layers were called without a single row that counts (experts that no sample was sent to, or tokens that "
    "attention_mask hides?)"
)
INSIDE = "The inputs of these weights stay within their modules, where nothing can look at them"
ELSEWHERE = "These weights are read without calling their layers (by torch.nn.functional?), so that no input is seen"
NEVER = "The calibration batches never use these weights"
NOT_A_PRODUCT = "What these layers do with their weights is no product that one could look at"


def causes_of(calibration: Calibration, unseen: Mapping[str, nn.Module]) -> dict[str, list[str]]:
    """Return each cause with the names that it holds for, after one more pass over the batches of this process.

    Args:
        calibration: The model, left as it was, and its batches.
        unseen: Name to layer, or view.
    """
    called: set[str] = set()
    read: set[int] = set()

    def note(name: str, module: nn.Module, inputs: object, output: object) -> None:
        called.add(name)

    watched = [(held_by(layer)[0], _named(note, name)) for name, layer in unseen.items()]
    with isolated(calibration.model), torch.no_grad(), hooked(after=watched), _Reads(read):
        calibration.run("looking for the uses of weights")
    found: dict[str, list[str]] = {}
    for name, layer in unseen.items():
        found.setdefault(_cause(layer, name in called, id(layer.weight) in read), []).append(name)
    return found


def _cause(layer: nn.Module, called: bool, read: bool) -> str:
    if held_by(layer)[0] is not layer:
        return INSIDE if called else NEVER
    kind = kind_of(layer)
    if kind is None or kind.operation in ("any", "nonlinear"):
        return NOT_A_PRODUCT if called or read else NEVER
    if called:
        return EMPTY
    return ELSEWHERE if read else NEVER


def _named(note: Callable[[str, nn.Module, object, object], None], name: str) -> Callable[..., None]:
    return lambda module, inputs, output: note(name, module, inputs, output)


class _Reads(TorchFunctionMode):
    """Notes which tensors any operation of torch is given."""

    def __init__(self, read: set[int]) -> None:
        super().__init__()
        self._read = read

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Note the tensors and run the operation."""
        for value in (*args, *(kwargs or {}).values()):
            for item in value if isinstance(value, (tuple, list)) else (value,):
                if isinstance(item, Tensor):
                    self._read.add(id(item))
        return function(*args, **(kwargs or {}))
