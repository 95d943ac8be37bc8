"""Evaluation mode for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from ..tools.clean_up import afterwards


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run a block with a model in eval mode; the mode of every module comes back, whatever each was."""
    modes = {module: module.training for module in model.modules()}

    def restore() -> None:
        for module, mode in modes.items():
            module.training = mode

    with afterwards(restore):
        model.eval()
        yield
