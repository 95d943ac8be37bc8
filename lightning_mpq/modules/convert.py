"""Models with float layers to models with packed layers and back, in place, all or nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..errors import NonFiniteError
from ..grids.registry import grid_named
from ..inputs.quantizer import InputRange
from ..inputs.sites import input_sites, refusal
from ..network.layer_kinds import (
    ParameterView,
    float_class,
    kind_of,
    rows_and_columns,
    taken_name,
    weight_rows,
)
from ..network.named_weights import named_layers
from ..policy import BitPolicy
from ..quantizers import QuantizedRows, quantize_rows
from ..quantizers.packing import pack_codes, packed_size
from ..quantizers.padding_row import check_padding_row
from ..schemes import InputScheme, WeightScheme
from ..tools.checks import shown
from ..tools.clean_up import after_errors
from . import conv, embedding, linear  # noqa: F401  these register their types
from .holder import PackedWeight, attach
from .packed import PACKED_TYPES, PackedLayer, packed_type
from .quantized_operands import operands_in_float, quantize_operands
from .state_guard import guard_state


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


def pack_model(
    model: nn.Module,
    policy: BitPolicy,
    rounded: Mapping[str, QuantizedRows] | None = None,
    ranges: Mapping[str, InputRange] | None = None,
) -> dict[str, nn.Module]:
    """Replace every layer that the policy names by its packed twin, in place.

    Everything is rounded and built before the first layer is replaced; an error leaves the model as it was.
    A layer registered under several names is replaced under all of them; layers that share a weight share
    their buffers. The packed layer is of the type registered for the float type that the layer behaves as,
    so methods that a subclass adds are not carried over.

    Args:
        model: The model to change.
        policy: Which layers are packed, and how.
        rounded: Layer name to its rounded weight, for a shared weight under any of its names; layers that it
            misses are rounded to nearest.
        ranges: Layer name to the range of its inputs, for those whose scheme has one, and the ranges of what sums and
            averages read, for those that the policy names in ``operands``.

    Returns:
        Layer name to float layer, for `restore_layers`.

    Raises:
        TypeError: If a layer cannot be packed.
        ValueError: If the policy, ``rounded`` or ``ranges`` does not fit the model.
        NonFiniteError: If a weight is NaN or infinite; the message names the layer.
    """
    rounded = rounded or {}
    schemes = policy.weights()
    if unknown := sorted(set(rounded) - set(schemes)):
        raise ValueError(f"Rounded weights were given for {unknown[0]!r}, which the policy does not name.")
    modules = named_layers(model, remove_duplicate=False)
    given = {id(getattr(modules.get(name), "weight", None)): name for name in rounded}

    def pack(name: str, module: nn.Module, scheme: WeightScheme) -> PackedLayer:
        known = given.get(id(module.weight))
        quantized = _round(name, module, scheme) if known is None else rounded[known]
        if quantized.scheme != scheme:
            raise ValueError(
                f"The rounded weight of layer {name!r} is {quantized.scheme}, but the policy says {scheme}."
            )
        try:
            check_padding_row(module, scheme)
            return pack_layer(module, quantized)
        except ValueError as error:
            raise ValueError(f"Layer {name!r}: {error}") from error

    return _put_in(model, policy, build_layers(model, policy, pack, ranges or {}), ranges or {})


def _put_in(
    model: nn.Module,
    policy: BitPolicy,
    layers: Mapping[str, PackedLayer],
    ranges: Mapping[str, InputRange] | None,
) -> dict[str, nn.Module]:
    """Put packed layers into a model and let sums and averages read quantized tensors; return the float layers."""
    floats = replace_layers(model, layers)
    with after_errors(lambda: replace_layers(model, floats)):
        quantize_operands(model, policy.operands or {}, ranges)
    return floats


def empty_packed_model(model: nn.Module, policy: BitPolicy) -> dict[str, nn.Module]:
    """Replace every layer that the policy names by a packed one whose codes and scales are zero, in place.

    Nothing is rounded: shapes and types are those that `pack_model` would give, ready for `load_state_dict`.
    Works on the meta device.

    Returns:
        Layer name to float layer, for `restore_layers`.

    Raises:
        TypeError: If a layer cannot be packed.
        ValueError: If the policy does not fit the model.
    """
    return _put_in(model, policy, build_layers(model, policy, empty_layer), None)


def restore_layers(model: nn.Module, floats: Mapping[str, nn.Module]) -> None:
    """Put float layers back where `pack_model` or `empty_packed_model` took them from; sums read floats again."""
    operands_in_float(model)
    replace_layers(model, floats)


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
                raise ValueError(_unknown_layer(name, model, modules))
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


def _round(name: str, module: nn.Module, scheme: WeightScheme) -> QuantizedRows:
    try:
        return quantize_rows(weight_rows(module), scheme)
    except NonFiniteError as error:
        raise NonFiniteError(f"Layer {name!r}: {error}") from error
    except ValueError as error:
        raise ValueError(f"Layer {name!r}: {error}") from error


def replace_layers(model: nn.Module, layers: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Put layers in the places of those now at their names, under every name these have; return the old ones.

    An error or an interrupt in between leaves the old ones.
    """
    modules = named_layers(model, remove_duplicate=False)
    if missing := [name for name in layers if name not in modules]:
        raise ValueError(_unknown_layer(missing[0], model, modules))
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


def _unknown_layer(name: str, model: nn.Module, modules: Mapping[str, nn.Module]) -> str:
    known = [layer for layer, module in modules.items() if float_class(module) is not None]
    shown = ", ".join(known[:8]) + (", ..." if len(known) > 8 else "")
    return f"The policy names the layer {name!r}, which {type(model).__name__} does not have. Its layers: {shown}."
