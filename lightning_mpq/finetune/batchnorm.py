"""BatchNorm statistics that stand still during fine-tuning, whatever mode the model is put into."""

from __future__ import annotations

from typing import ClassVar, Self

from torch import nn

from ..network.batchnorm import batchnorm_layers
from ..tools.changed_class import change_back, change_class


class FrozenStatistics(nn.Module):
    """Mixin for BatchNorm layers that stay in evaluation mode; scale and shift go on learning."""

    prefix: ClassVar[str] = "Frozen"

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode."""
        return super().train(False)


def freeze_batchnorm(model: nn.Module) -> list[str]:
    """Let BatchNorm layers normalise by their running statistics from now on, also in training mode.

    Re-estimate the statistics after quantized weights before: a frozen layer takes no more of them.

    Returns:
        The names of the layers.

    Example:
        >>> net = nn.Sequential(nn.BatchNorm1d(2))
        >>> freeze_batchnorm(net)
        ['0']
        >>> net.train()[0].training
        False
        >>> unfreeze_batchnorm(net)
        >>> net.train()[0].training
        True
    """
    layers = {name: layer for name, layer in batchnorm_layers(model).items() if not isinstance(layer, FrozenStatistics)}
    for layer in layers.values():
        change_class(layer, FrozenStatistics)
        layer.eval()
    return list(layers)


def unfreeze_batchnorm(model: nn.Module) -> None:
    """Undo `freeze_batchnorm`; the layers stay in evaluation mode until the model's mode is set."""
    for layer in model.modules():
        if isinstance(layer, FrozenStatistics):
            change_back(layer)
