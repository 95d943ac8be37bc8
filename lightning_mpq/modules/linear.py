"""The packed Linear layer."""

from torch import nn

from .packed import PackedLayer, register_packed


@register_packed(nn.Linear)
class PackedLinear(PackedLayer, nn.Linear):
    """A Linear layer that stores 2..8-bit codes."""
