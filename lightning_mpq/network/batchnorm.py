"""BatchNorm layers, and what they normalise by while a model is measured: running statistics or those of a batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import MethodType

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..tools.attributes import shadowed
from ..tools.clean_up import afterwards
from .modes import evaluating


def batchnorm_layers(model: nn.Module) -> dict[str, _BatchNorm]:
    """Return the normalisation layers that keep running statistics, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats and module.running_mean is not None
    }


@contextmanager
def batch_statistics(model: nn.Module, *, averaged: bool = False) -> Iterator[None]:
    """Let BatchNorm layers normalise by the statistics of the batch at hand, and everything else stay in eval mode.

    Running statistics that are measured again after quantization follow the weights as those of a batch do: what is
    differentiated, or rounded, through them is the damage that re-estimation leaves.

    Args:
        model: Module in any mode; modes and momenta are restored.
        averaged: Whether running statistics become the averages over the batches that pass, each of which counts the
            same; they are the caller's to restore. Otherwise they stay as they are.
    """
    layers = batchnorm_layers(model).values()
    stack = ExitStack()
    with afterwards(stack.close):
        stack.enter_context(evaluating(model))
        for layer in layers:
            if not averaged:
                stack.enter_context(shadowed(layer, running_mean=None, running_var=None))
                continue
            layer.train()
            stack.enter_context(shadowed(layer, momentum=None))  # torch's name for a cumulative average
            if isinstance(layer, nn.SyncBatchNorm):
                # Else statistics are exchanged in every pass, which hangs where processes have other numbers of
                # batches.
                stack.enter_context(shadowed(layer, forward=MethodType(_BatchNorm.forward, layer)))
        yield
