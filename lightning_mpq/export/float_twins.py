"""Packed layers seen as float layers with the dequantized weights, for tools that know nothing of packing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from ..modules import PackedLayer, PackedWeight, packed_layers
from ..modules.replacing import replace_layers
from ..network.layer_kinds import LAYER_KINDS, PACKED_NAMES, LayerKind, ParameterView
from ..tools.changed_class import ChangedClass, original_class
from ..tools.clean_up import afterwards


def float_twin(layer: PackedLayer, weight: nn.Parameter | None = None) -> nn.Module:
    """Return the float layer that computes what a packed one computes; the packed layer is left as it is.

    Bias, other parameters, plain attributes, mode and hooks are the same objects as the packed layer's.

    Args:
        layer: A packed layer.
        weight: Its dequantized weight if it is at hand, as for layers that share one.
    """
    own_type = original_class(layer) if isinstance(layer, ChangedClass) else layer.float_type
    twin = own_type.__new__(own_type)
    if weight is None:
        weight = nn.Parameter(layer.dequantize(), requires_grad=False)
    twin.__dict__.update({key: value for key, value in layer.__dict__.items() if key not in PACKED_NAMES})
    twin.__dict__.update(
        _parameters={"weight": weight, **layer._parameters},
        _buffers={key: value for key, value in layer._buffers.items() if key not in PACKED_NAMES},
        _modules=dict(layer._modules),
        _non_persistent_buffers_set=layer._non_persistent_buffers_set - PACKED_NAMES,
        _compiled_call_impl=None,
    )
    return twin


@contextmanager
def float_twins(model: nn.Module) -> Iterator[Mapping[str, PackedLayer]]:
    """Put float layers with the dequantized weights in the places of all packed ones, for the time of a block.

    Layers that share packed buffers share the float weight.

    Yields:
        Layer name to packed layer, as `packed_layers` gives it.
    """
    packed = packed_layers(model)
    weights: dict[object, nn.Parameter] = {}
    twins: dict[str, nn.Module] = {}
    for name, layer in packed.items():
        key = shared_key(layer)
        twins[name] = float_twin(layer, weights.get(key))
        weights[key] = twins[name]._parameters["weight"]  # type: ignore[assignment]
    with afterwards(lambda: replace_layers(model, packed)):
        replace_layers(model, twins)
        yield packed


def weight_names(model: nn.Module) -> dict[str, str]:
    """Return each name that a packed weight has as a parameter of the float model, with the name of its layer.

    Example:
        >>> from lightning_mpq.modules import pack_model
        >>> from lightning_mpq import BitPolicy, WeightScheme
        >>> model = nn.Sequential(nn.Linear(2, 2))
        >>> _ = pack_model(model, BitPolicy({"0": WeightScheme(4)}))
        >>> weight_names(model)
        {'0.weight': '0'}
    """
    first = {id(layer): name for name, layer in packed_layers(model).items()}
    return {
        name if isinstance(module, PackedWeight) else f"{name}.weight": first[id(module)]
        for name, module in model.named_modules(remove_duplicate=False)
        if id(module) in first
    }


def shared_key(layer: PackedLayer) -> tuple[object, ...]:
    """Return what layers have in common if and only if their dequantized weights are one tensor."""
    layout = kind_of_packed(layer).from_rows
    return id(layer.packed_codes), layout, layer_groups(layer), layer.weight_shape, layer.weight_dtype


def to_weight(layer: PackedLayer, rows: Tensor) -> Tensor:
    """Bring [rows, columns] of any type to the layout of a packed layer's weight."""
    return kind_of_packed(layer).from_rows(rows, layer.weight_shape, layer_groups(layer))


def kind_of_packed(layer: PackedLayer) -> LayerKind:
    """Return how a packed layer's float twin uses its weight."""
    return layer.kind if isinstance(layer, ParameterView) else LAYER_KINDS[layer.float_type]


def layer_groups(layer: nn.Module) -> int:
    """Return the groups of a convolution, 1 for other layers."""
    return int(getattr(layer, "groups", 1))
