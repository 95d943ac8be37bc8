"""Ways of fine-tuning the Linear layers of a network at one width: torchao's two, and ours from two starts."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from ...tools.accuracy import Images
from .ours import ours_from_torchao, ours_second_order
from .prepared import Prepared, Stored, step
from .torchao import torchao_dynamic, torchao_learned

WAYS: dict[str, Callable[[nn.Module, int, Images], Prepared]] = {
    "torchao QAT": torchao_dynamic,
    "ours, torchao's start": ours_from_torchao,
    "ours, second-order start": ours_second_order,
    "torchao QAT, learned ranges": torchao_learned,
}

__all__ = [
    "WAYS",
    "Prepared",
    "Stored",
    "ours_from_torchao",
    "ours_second_order",
    "step",
    "torchao_dynamic",
    "torchao_learned",
]
