"""Layers put in the places of others, under every name these have; all of them or none."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from ..network.compiled import said_of_compiled
from ..network.layer_kinds import ParameterView, float_class
from ..network.named_weights import named_layers
from ..tools.clean_up import after_errors
from .holder import PackedWeight, attach
from .state_guard import guard_state


def replace_layers(model: nn.Module, layers: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Put layers in the places of those now at their names, under every name these have; return the old ones.

    An error or an interrupt in between leaves the old ones.
    """
    modules = named_layers(model, remove_duplicate=False)
    if missing := [name for name in layers if name not in modules]:
        raise ValueError(unknown_layer(missing[0], model, modules))
    old = {name: modules[name] for name in layers}
    with after_errors(lambda: _put(model, old)):
        _put(model, layers)
    return old


def _put(model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    """Put layers in the places of those now at their names; what is there already stays."""
    modules = named_layers(model, remove_duplicate=False)
    new: dict[int, nn.Module] = {}
    for name, layer in layers.items():
        if isinstance(layer, (PackedWeight, ParameterView)):
            owner, _, attribute = name.rpartition(".")
            attach(modules[owner], attribute, layer)
        else:
            new[id(modules[name])] = layer
    for parent in list(model.modules()):
        for attribute, child in parent._modules.items():
            if id(child) in new:
                parent._modules[attribute] = new[id(child)]
    guard_state(model)


def unknown_layer(name: str, model: nn.Module, modules: Mapping[str, nn.Module]) -> str:
    """Return what is said of a layer that a model does not have."""
    known = [layer for layer, module in modules.items() if float_class(module) is not None]
    shown = ", ".join(known[:8]) + (", ..." if len(known) > 8 else "")
    said = f"The policy names the layer {name!r}, which {type(model).__name__} does not have. Its layers: {shown}."
    return said + said_of_compiled(name, known)
