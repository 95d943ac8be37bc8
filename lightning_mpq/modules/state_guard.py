"""A packed model refuses a state dict that its packed layers cannot take before any tensor of it is loaded.

PyTorch loads module after module and complains at the end, so that a float state would overwrite biases and statistics
of a packed model whose weights it cannot replace.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from .packed import PackedLayer


def guard_state(model: nn.Module) -> None:
    """Let a model refuse foreign states as long as it has packed layers; called whenever layers were replaced."""
    hooks = model._load_state_dict_pre_hooks
    ours = [key for key, hook in hooks.items() if getattr(hook, "hook", None) is _refuse]
    packed = any(isinstance(module, PackedLayer) for module in model.modules())
    if packed and not ours:
        model.register_load_state_dict_pre_hook(_refuse)
    elif not packed:
        for key in ours:
            del hooks[key]


def _refuse(model: nn.Module, state: Mapping[str, Any], prefix: str, *others: Any) -> None:
    """Raise a sentence if a state is not one of this packed model."""
    for name, layer in model.named_modules():
        if isinstance(layer, PackedLayer) and (error := _misfit(f"{prefix}{name}", layer, state)):
            raise RuntimeError(
                f"{error} Nothing was loaded. Load it into a new, float instance of {type(model).__name__}: "
                "lightning_mpq.load(path, model) where it is a packed model, load_from_checkpoint or load_state_dict "
                "where it is a float one."
            )


def _misfit(name: str, layer: PackedLayer, state: Mapping[str, Any]) -> str | None:
    """Return what speaks against a state; None if the packed layer takes it, or it holds nothing for the layer."""
    stored = {f"{name}.{own}": value for own, value in layer.stored_tensors().items()}
    if not any(key in state for key in stored):
        if isinstance(state.get(f"{name}.weight", state.get(name)), Tensor):
            return f"Layer {name!r} is packed, and the state holds its float weight."
        return None  # a part of a state, which may be loaded with strict=False
    metadata = getattr(state, "_metadata", {})
    if error := layer.shape_error(f"{name}.", metadata.get(name, {})):
        return error
    for key, own in stored.items():
        value = state.get(key)
        if not isinstance(value, Tensor):
            return f"{key} is missing."
        if (value.shape, value.dtype) != (own.shape, own.dtype):
            return (
                f"{key} must be {own.dtype} {list(own.shape)}, got {value.dtype} {list(value.shape)}; was it packed "
                "by another policy?"
            )
    return None
