"""BatchNorm layers, and what they normalise by while a model is measured: running statistics or those of a batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import MethodType
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..tools.attributes import shadowed
from ..tools.clean_up import afterwards
from ..tools.warning import warn
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

    A batch that holds one value for each channel, as one sample does after pooling, has no statistics: it is normalised
    by the running ones that the layer has now, and does not count in averages.

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
            stack.enter_context(shadowed(layer, forward=_Forward(layer)))
            if not averaged:
                stack.enter_context(shadowed(layer, running_mean=None, running_var=None))
                continue
            layer.train()
            stack.enter_context(shadowed(layer, momentum=None))  # torch's name for a cumulative average
        yield


class _Forward:
    """The forward pass of a layer by the statistics of its input, where there are any."""

    def __init__(self, layer: _BatchNorm) -> None:
        assert layer.running_mean is not None
        assert layer.running_var is not None
        self._layer = layer
        self._mean, self._variance = layer.running_mean.clone(), layer.running_var.clone()
        # SyncBatchNorm would exchange statistics in every pass, and hang where processes have other numbers of batches.
        own = _BatchNorm.forward if isinstance(layer, nn.SyncBatchNorm) else type(layer).forward
        self._forward = MethodType(own, layer)

    def __call__(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        found: Tensor
        if input.numel() != input.shape[1]:
            found = self._forward(input, *args, **kwargs)
            return found
        warn(
            "A batch, or a chunk of one, gives a BatchNorm layer one value for each channel: it is left out of its "
            "statistics. Calibrate on batches of more samples (drop_last=True)."
        )
        with shadowed(self._layer, training=False, running_mean=self._mean, running_var=self._variance):
            found = self._forward(input, *args, **kwargs)
            return found
