"""What the tensors of a model of transformers are called in GGUF, and in which order their rows stand there."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ..export.extras import require

EXTRA = "llama-cpp"
Array = npt.NDArray[Any]


def tensor_names(model: nn.Module) -> dict[str, str]:
    """Return the names of parameters, as in ``model.layers.0.mlp.up_proj.weight``, to those of GGUF.

    What GGUF has no name for is left out; packed layers count with the weight that they stand for.

    Raises:
        ValueError: If no part of the model has a ``config`` of an architecture that gguf knows.
    """
    gguf = require(EXTRA, "gguf", "The target 'llama-cpp'")
    config, inner = _config_of(model)
    kind = getattr(config, "model_type", None)
    known = {name.replace("-", "_"): arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
    arch = known.get(str(kind).replace("-", "_"))
    if arch is None:
        said = f"{type(model).__name__} has no config" if kind is None else f"gguf has no architecture {kind!r}"
        raise ValueError(
            f"llama.cpp knows tensors by the names of its architectures, and {said}: pass a model of transformers "
            "whose model_type is one of gguf.MODEL_ARCH_NAMES, such as llama or qwen2."
        )
    of_gguf = gguf.get_tensor_name_map(arch, int(config.num_hidden_layers))
    found = {}
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    names += [f"{name}.weight" for name, layer in model.named_modules(remove_duplicate=False) if _packed(layer)]
    for name in names:
        own = name.removeprefix(f"{inner}.") if inner else name
        if (other := of_gguf.get_name(own, try_suffixes=(".weight", ".bias"))) is not None:
            found[name] = other
    return found


def _config_of(model: nn.Module) -> tuple[Any, str]:
    """Return the configuration of transformers, and the name of the part that has it."""
    for name, part in model.named_modules():
        if hasattr(config := getattr(part, "config", None), "num_hidden_layers"):
            return config, name
    return None, ""


def _packed(layer: nn.Module) -> bool:
    return hasattr(layer, "packed_codes")


def row_orders(rows: int, heads: int) -> list[Array]:
    """Return in which orders rows may stand in GGUF: as they are, or as ``convert_hf_to_gguf.py`` turns each head.

    Queries and keys of some architectures are turned by it, so that the two halves of what rotates stand in pairs.
    """
    order = np.arange(rows)
    if heads < 1 or rows % (2 * heads):
        return [order]
    return [order, order.reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)]


def matching_order(own: torch.Tensor, other: torch.Tensor, orders: list[Array]) -> tuple[Array, float]:
    """Return the order in which rows are nearest to those of a file, and their distance, relative to the latter."""
    size = float(other.norm()) or 1.0
    distances = [float((own[torch.from_numpy(order)] - other).norm()) / size for order in orders]
    best = int(np.argmin(distances))
    return orders[best], distances[best]
