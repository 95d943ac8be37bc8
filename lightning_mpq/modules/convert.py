"""Models with float layers to models with packed layers and back, in place, all or nothing."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from ..errors import NonFiniteError
from ..inputs.quantizer import InputRange
from ..network.layer_kinds import weight_rows
from ..network.named_weights import named_layers
from ..policy import BitPolicy
from ..quantizers import QuantizedRows, quantize_rows
from ..quantizers.padding_row import check_padding_row
from ..schemes import WeightScheme
from ..tools.clean_up import after_errors
from .packed import PackedLayer
from .quantized_operands import operands_in_float, quantize_operands
from .replacing import replace_layers
from .twins import build_layers, empty_layer, pack_layer


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


def _round(name: str, module: nn.Module, scheme: WeightScheme) -> QuantizedRows:
    try:
        return quantize_rows(weight_rows(module), scheme)
    except NonFiniteError as error:
        raise NonFiniteError(f"Layer {name!r}: {error}") from error
    except ValueError as error:
        raise ValueError(f"Layer {name!r}: {error}") from error
