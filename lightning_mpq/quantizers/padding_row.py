"""The row of an embedding that stands for padding: zeros that must stay zeros, whatever the grid."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..grids.registry import grid_named
from ..schemes import WeightScheme


def loses_padding_row(layer: nn.Module, scheme: WeightScheme) -> bool:
    """Tell whether a scheme would turn the zeros of an embedding's padding row into something else.

    A scale of its own is zero for such a row; a scale shared by the tensor needs a grid that has zero.

    Example:
        >>> padded = nn.Embedding(8, 4, padding_idx=0)
        >>> [loses_padding_row(padded, WeightScheme(2, shared, "half")) for shared in ("channel", "tensor")]
        [False, True]
    """
    padding, weight = getattr(layer, "padding_idx", None), getattr(layer, "weight", None)
    if scheme.granularity != "tensor" or padding is None or not isinstance(weight, Tensor) or _has_zero(scheme):
        return False
    return not weight.is_meta and not weight.detach()[padding].any()


def check_padding_row(layer: nn.Module, scheme: WeightScheme) -> None:
    """Raise a sentence where `loses_padding_row`.

    Raises:
        ValueError: If so.
    """
    if loses_padding_row(layer, scheme):
        raise ValueError(
            f"The row for padding (padding_idx={layer.padding_idx}) is zero, and {scheme} has no zero for it: offer a "
            "scale a channel, or a grid with zero, such as 'symmetric'."
        )


def _has_zero(scheme: WeightScheme) -> bool:
    grid = grid_named(scheme.grid)
    if grid.zero_point_bits:
        return not grid.zero_point_dtype.is_floating_point  # ranges include zero
    levels = grid.place(torch.ones(1, 1), None, scheme.bits)
    return not levels.values(levels.nearest(torch.zeros(1, 1))).any()
