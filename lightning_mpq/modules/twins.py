"""Packed twins of float layers, built without touching the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..grids.registry import grid_named
from ..inputs.quantizer import InputRange
from ..inputs.sites import input_sites, refusal
from ..network.layer_kinds import ParameterView, float_class, kind_of, rows_and_columns, taken_name
from ..network.named_weights import named_layers
from ..policy import BitPolicy
from ..quantizers import QuantizedRows
from ..quantizers.packing import pack_codes, packed_size
from ..schemes import InputScheme, WeightScheme
from ..tools.checks import shown
from . import conv, embedding, linear  # noqa: F401  these register their types
from .packed import PACKED_TYPES, PackedLayer, packed_type
from .replacing import unknown_layer


def pack_layer(module: nn.Module, quantized: QuantizedRows) -> PackedLayer:
    """Return the packed twin of a float layer; the layer itself is left as it is.

    Args:
        module: A layer of a registered type, or a `ParameterView`.
        quantized: Its weight, rounded, as rows by columns.

    Raises:
        TypeError: If the layer cannot be packed.
        ValueError: If the rounded weight has another shape.
    """
    _check_layer(type(module).__name__, module)
    if tuple(quantized.codes.shape) != rows_and_columns(module):
        raise ValueError(
            f"Expected rounded weights of shape {list(rows_and_columns(module))} (rows by columns) for this "
            f"{type(module).__name__}, got {list(quantized.codes.shape)}."
        )
    weight = module.weight
    assert isinstance(weight, Tensor)
    zero_point = None if quantized.zero_point is None else quantized.zero_point.to(weight.device)
    return packed_type(module).from_float(
        module,
        quantized.scheme,
        pack_codes(quantized.codes, quantized.scheme.bits).to(weight.device),
        quantized.scale.to(weight.device),
        zero_point,
    )


def empty_layer(name: str, module: nn.Module, scheme: WeightScheme) -> PackedLayer:
    """Build a packed layer with zero codes and scales on the device of its weight."""
    rows, columns = rows_and_columns(module)
    device = module.weight.device
    assert isinstance(device, torch.device)
    scale_rows = 1 if scheme.granularity == "tensor" else rows
    scale_shape = (scale_rows, scheme.scale_count(rows, columns) // scale_rows)
    grid = grid_named(scheme.grid)
    stored = grid.zero_point_bits > 0
    zero_point = torch.zeros(scale_shape, dtype=grid.zero_point_dtype, device=device) if stored else None
    return packed_type(module).from_float(
        module,
        scheme,
        torch.zeros(packed_size(rows * columns, scheme.bits), dtype=torch.uint8, device=device),
        torch.zeros(scale_shape, dtype=getattr(torch, scheme.scale_dtype), device=device),
        zero_point,
    )


def build_layers(
    model: nn.Module,
    policy: BitPolicy,
    build: Callable[[str, nn.Module, WeightScheme], PackedLayer],
    ranges: Mapping[str, InputRange] | None = None,
) -> dict[str, PackedLayer]:
    """Build the packed twin of every layer that a policy names, without touching the model.

    ``build(name, layer, scheme)`` makes one; layers that share a weight get the buffers of the first of them. Without
    ``ranges`` those of the inputs are still to be filled in.
    """
    _check_inputs(model, policy)
    modules = named_layers(model, remove_duplicate=False)
    built: dict[str, PackedLayer] = {}
    by_weight: dict[tuple[object, ...], tuple[str, PackedLayer]] = {}
    for group, names in policy.layers.items():
        scheme = policy[group].weight
        for name in names:
            if name not in modules:
                raise ValueError(unknown_layer(name, model, modules))
            module = modules[name]
            _check_layer(f"Layer {name!r}" if name else "", module)
            kind = kind_of(module)
            key = (id(module.weight), kind and kind.to_rows, getattr(module, "groups", 1))
            if key in by_weight:
                first, twin = by_weight[key]
                if twin.scheme != scheme:
                    raise ValueError(
                        f"Layers {first!r} and {name!r} share one weight, but the policy gives them {twin.scheme} "
                        f"and {scheme}; put them in one group."
                    )
                layer = packed_type(module).from_float(module, scheme, twin.packed_codes, twin.scale, twin.zero_point)
            else:
                layer = build(name, module, scheme)
                by_weight[key] = (name, layer)
            layer.group = group
            if (inputs := policy[group].quantized_input) is not None:
                layer.set_inputs(inputs, _range_of(name, inputs, ranges))
            built[name] = layer
    return built


def _check_inputs(model: nn.Module, policy: BitPolicy) -> None:
    """Refuse a policy that quantizes inputs which cannot be."""
    if schemes := policy.inputs():
        sites, layers = input_sites(model), named_layers(model, remove_duplicate=False)
        for name, scheme in schemes.items():
            if said := refusal(name, layers.get(name), sites, scheme):
                raise ValueError(said)


def _range_of(name: str, scheme: InputScheme, ranges: Mapping[str, InputRange] | None) -> InputRange | None:
    if not scheme.needs_range:
        return None
    if ranges is None:
        return InputRange(1.0, 0)
    if name not in ranges:
        raise ValueError(
            f"The range of the inputs of {name!r} ({scheme}) is not known; it is found on calibration batches. Pass "
            "batches=, or the ranges that input_ranges(...) has found."
        )
    if not isinstance(ranges[name], InputRange):
        raise TypeError(f"The range of the inputs of {name!r} must be an InputRange, got {shown(ranges[name])}.")
    return ranges[name]


def _check_layer(what: str, module: nn.Module) -> None:
    """Raise a sentence if a layer cannot be packed; ``what`` names it, empty for the model itself."""
    if not what:
        raise ValueError(
            f"The model is itself a {type(module).__name__}, which cannot be replaced in place; "
            "wrap it in nn.Sequential."
        )
    if isinstance(module, PackedLayer):
        raise TypeError(f"{what} is packed already ({module.scheme}); start from the float model.")
    if float_class(module) is None:
        known = ", ".join(kind.__name__ for kind in PACKED_TYPES if kind is not ParameterView)
        raise TypeError(
            f"{what} is of type {type(module).__name__}; only {known}, and the weights of attention, recurrent and "
            "registered layers can be packed. See lightning_mpq.register_layer."
        )
    if "forward" in module.__dict__:
        raise TypeError(f"{what} has a forward of its own set on the instance, which packing would drop; remove it.")
    if not isinstance(module._parameters.get("weight"), nn.Parameter):
        raise TypeError(f"{what} computes its weight (a parametrization or weight_norm?); make it a plain parameter.")
    if is_lazy(module.weight):  # type: ignore[arg-type]
        raise TypeError(f"{what} is not initialized yet; run the model once on a batch.")
    if clash := taken_name(module):
        raise TypeError(f"{what} has an attribute {clash!r} of its own, a name that packed layers need; rename it.")
