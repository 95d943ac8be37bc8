"""Layers that really store 2..8-bit weights, and how a model gets them."""

from .clipped_inputs import clipped_inputs
from .conv import (
    PackedConv1d,
    PackedConv2d,
    PackedConv3d,
    PackedConvTranspose1d,
    PackedConvTranspose2d,
    PackedConvTranspose3d,
)
from .convert import empty_packed_model, pack_model, restore_layers
from .embedding import PackedEmbedding
from .holder import PackedWeight, WeightHolder
from .inspection import (
    StoredBytes,
    packed_layers,
    policy_of,
    set_memory,
    stored_bytes,
)
from .kernel_choice import KernelChoice, KernelChoices, use_kernels
from .linear import PackedLinear
from .packed import PACKED_TYPES, PackedLayer, register_packed
from .twins import pack_layer

__all__ = [
    "KernelChoice",
    "KernelChoices",
    "PACKED_TYPES",
    "PackedConv1d",
    "PackedConv2d",
    "PackedConv3d",
    "PackedConvTranspose1d",
    "PackedConvTranspose2d",
    "PackedConvTranspose3d",
    "PackedEmbedding",
    "PackedLayer",
    "PackedLinear",
    "PackedWeight",
    "StoredBytes",
    "WeightHolder",
    "clipped_inputs",
    "empty_packed_model",
    "pack_layer",
    "pack_model",
    "packed_layers",
    "policy_of",
    "register_packed",
    "restore_layers",
    "set_memory",
    "stored_bytes",
    "use_kernels",
]
