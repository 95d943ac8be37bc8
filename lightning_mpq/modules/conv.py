"""Packed convolutions; stride, padding, its modes, dilation and groups are the inherited forward's business."""

from torch import nn

from .packed import QuantizesInputs, register_packed


@register_packed
class PackedConv1d(QuantizesInputs, nn.Conv1d):
    """A Conv1d layer that stores 2..8-bit codes."""


@register_packed
class PackedConv2d(QuantizesInputs, nn.Conv2d):
    """A Conv2d layer that stores 2..8-bit codes."""


@register_packed
class PackedConv3d(QuantizesInputs, nn.Conv3d):
    """A Conv3d layer that stores 2..8-bit codes."""


@register_packed
class PackedConvTranspose1d(QuantizesInputs, nn.ConvTranspose1d):
    """A ConvTranspose1d layer that stores 2..8-bit codes; a row is an output channel of one group."""


@register_packed
class PackedConvTranspose2d(QuantizesInputs, nn.ConvTranspose2d):
    """A ConvTranspose2d layer that stores 2..8-bit codes; a row is an output channel of one group."""


@register_packed
class PackedConvTranspose3d(QuantizesInputs, nn.ConvTranspose3d):
    """A ConvTranspose3d layer that stores 2..8-bit codes; a row is an output channel of one group."""
