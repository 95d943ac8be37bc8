"""What every packed layer shares: the stored buffers, and a weight that is computed from them when it is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, Self, cast

import torch
from torch import Tensor, nn

from ..inputs.quantizer import InputRange, quantize_inputs
from ..network.layer_kinds import LAYER_KINDS, ParameterView, float_class, rows_and_columns, taken_name
from ..network.own_operation import DECLARED, is_plain
from ..quantizers import QuantizedRows
from ..quantizers.packing import unpack_codes
from ..quantizers.quantized_rows import dequantize
from ..schemes import FLOAT, InputScheme, LayerScheme, WeightScheme
from ..tools.changed_class import changed_class, original_class
from ..tools.checks import check_one_of
from ..tools.scripting import NotScriptable
from .computed_weight import computed_weight

Memory = Literal["packed", "fast"]
STORED = ("packed_codes", "scale", "zero_point")
"""The buffers that hold the weight. Their types never change: they are the stored format."""
STORED_INPUT = ("input_scale", "input_zero_point")
"""The buffers that hold the range of quantized inputs, likewise."""
SHAPE_KEY = "weight_shape"
"""Under which the metadata of a state dict hold the shape of a weight."""
PACKED_TYPES: dict[type[nn.Module], type[PackedLayer]] = {}
"""Float layer type to the type that replaces it."""


class PackedLayer(NotScriptable, nn.Module):
    """Mixin that turns a float layer type into one that stores 2..8-bit codes instead of its weight.

    A packed type inherits from this class and from the layer's own type, in this order, and says no more than its
    name: ``weight`` becomes a read-only property, and the inherited forward reads it. So the layer computes
    what the float layer with the dequantized weight computes, to the last bit, and everything else that reads
    ``weight`` or asks ``isinstance(layer, nn.Linear)`` goes on working.

    ``half()``, ``bfloat16()`` and ``to(dtype)`` change ``weight_dtype``, the type that ``weight`` is computed to.
    The buffers keep their types: weights are computed in float32 or wider from the scales
    as stored (exactly, with 16-bit scales), so that no number of casts ever changes the model.

    Attributes:
        packed_codes: uint8 [ceil(n / 8) * bits], the codes of all rows as one bit stream (see `pack_codes`).
        scale: [1, 1], [rows, 1] or [rows, blocks] in the scheme's scale type.
        zero_point: Shaped like ``scale``, in the grid's type; None unless it stores zero points.
        dense_weight: The weight in ``weight_dtype`` if it is kept (``memory="fast"``), else None; never saved.
        scheme: How the weight is quantized.
        input_scheme: How the inputs are; None if they stay in float.
        input_scale: float32 [], the step of quantized inputs; None without a stored range.
        input_zero_point: uint8 [], the code of zero; None without a stored range.
        weight_shape: Shape of the float layer's weight.
        weight_dtype: Type of the dequantized weight.
        row_shape: (rows, columns) of the weight seen as output channels by fan-in.
        group: Group of the policy that decided the scheme; None if the layer was packed alone.
    """

    prefix: ClassVar[str] = "Packed"
    float_type: ClassVar[type[nn.Module]]
    packed_codes: Tensor
    scale: Tensor
    zero_point: Tensor | None
    dense_weight: Tensor | None
    scheme: WeightScheme
    input_scheme: InputScheme | None = None
    input_scale: Tensor | None
    input_zero_point: Tensor | None
    weight_shape: torch.Size
    weight_dtype: torch.dtype
    row_shape: tuple[int, int]
    group: str | None

    def __init_subclass__(cls, **options: Any) -> None:
        """Note the registered float layer type among the bases."""
        super().__init_subclass__(**options)
        known = (base if base in LAYER_KINDS else DECLARED.get(base) for base in cls.__mro__)
        cls.float_type = next((base for base in known if base is not None), nn.Module)

    @classmethod
    def from_float(
        cls,
        layer: nn.Module,
        scheme: WeightScheme,
        packed_codes: Tensor,
        scale: Tensor,
        zero_point: Tensor | None,
    ) -> Self:
        """Build the packed twin of a float layer, which is left as it is.

        Bias, other parameters, plain attributes, mode and hooks are the same objects as the float layer's.
        """
        weight = layer._parameters["weight"]
        assert weight is not None
        packed = cls.__new__(cls)
        packed.__dict__.update(layer.__dict__)
        buffers = {"packed_codes": packed_codes, "scale": scale, "zero_point": zero_point, "dense_weight": None}
        buffers |= dict.fromkeys(STORED_INPUT)
        packed.__dict__.update(
            _parameters={name: value for name, value in layer._parameters.items() if name != "weight"},
            _buffers={**layer._buffers, **buffers},
            _modules=dict(layer._modules),
            _non_persistent_buffers_set={*layer._non_persistent_buffers_set, "dense_weight"},
            _compiled_call_impl=None,  # a compiled call is bound to the float layer
            scheme=scheme,
            input_scheme=None,
            weight_shape=weight.shape,
            weight_dtype=weight.dtype,
            row_shape=rows_and_columns(layer),
            group=None,
        )
        return packed

    def _weight(self) -> Tensor:
        """Return the dequantized weight, in the float layer's shape and ``weight_dtype``; it refuses writes."""
        return computed_weight(self.dequantize() if self.dense_weight is None else self.dense_weight)

    weight: Tensor = property(_weight)  # type: ignore[assignment]  # read-only where the float type has a parameter

    def dequantize(self) -> Tensor:
        """Compute the weight from the stored buffers."""
        matrix = dequantize(self.codes(), self.scale, self.zero_point, self.scheme, self.weight_dtype)
        kind = self.kind if isinstance(self, ParameterView) else LAYER_KINDS[self.float_type]
        return kind.from_rows(matrix, self.weight_shape, int(getattr(self, "groups", 1)))

    def codes(self) -> Tensor:
        """Return the codes, uint8 [rows, columns]."""
        rows, columns = self.row_shape
        return unpack_codes(self.packed_codes, self.scheme.bits, rows * columns).view(rows, columns)

    def quantized_rows(self) -> QuantizedRows:
        """Return codes, scales and scheme as `quantize_rows` made them."""
        return QuantizedRows(self.codes(), self.scale, self.zero_point, self.scheme)

    @property
    def layer_scheme(self) -> LayerScheme:
        """How weight and inputs are quantized."""
        return LayerScheme(self.scheme, FLOAT if self.input_scheme is None else self.input_scheme)

    def set_inputs(self, scheme: InputScheme, found: InputRange | None) -> None:
        """Quantize the inputs from now on.

        Args:
            scheme: How.
            found: The range; None where each token has its own.
        """
        self.input_scheme = scheme
        if found is not None:
            self.input_scale, self.input_zero_point = found.tensors(self.packed_codes.device)

    def quantized_input(self, input: Tensor) -> Tensor:
        """Return what the weight is multiplied with: inputs as they are, or rounded to the levels of their range."""
        if self.input_scheme is None:
            return input
        return quantize_inputs(input, self.input_scheme, self.input_scale, self.input_zero_point)

    def stored_tensors(self) -> dict[str, Tensor]:
        """Return the buffers that hold the weight and the range of the inputs, by name."""
        return {name: value for name in (*STORED, *STORED_INPUT) if (value := self._buffers.get(name)) is not None}

    @property
    def stored_bytes(self) -> int:
        """Bytes of codes, scales and zero points, those of the inputs included."""
        return sum(value.numel() * value.element_size() for value in self.stored_tensors().values())

    @property
    def memory(self) -> Memory:
        """``"packed"``: dequantize at each call. ``"fast"``: keep the dequantized weight beside the codes."""
        return "packed" if self.dense_weight is None else "fast"

    @memory.setter
    def memory(self, choice: Memory) -> None:
        check_one_of("memory", choice, ("packed", "fast"))
        self.dense_weight = self.dequantize() if choice == "fast" else None

    @property
    def cached_bytes(self) -> int:
        """Bytes that ``memory="fast"`` costs on top of the stored ones; 0 with ``"packed"``."""
        return 0 if self.dense_weight is None else self.dense_weight.numel() * self.dense_weight.element_size()

    def extra_repr(self) -> str:
        """Say what the float layer says, then bits, grid, granularity, inputs unless in float, and bytes."""
        cached = f", {self.cached_bytes} bytes cached" if self.cached_bytes else ""
        own = f"{self.layer_scheme}, {self.stored_bytes} bytes{cached}"
        inherited = super().extra_repr()
        return f"{inherited}, {own}" if inherited else own

    def reset_parameters(self) -> None:
        """Refuse: there is no float weight to initialise."""
        raise TypeError(f"{type(self).__name__} holds a quantized weight, which cannot be initialised anew.")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the stored buffers but never cast them; casts change ``weight_dtype`` instead.

        Buffers keep their identity as parameters do, so that layers which share them still share them after.
        """
        before = self.stored_tensors()
        memory, self.dense_weight = self.memory, None
        self.weight_dtype = fn(torch.empty(0, dtype=self.weight_dtype, device=self.packed_codes.device)).dtype
        super()._apply(fn, recurse)
        for name, old in before.items():
            new = self._buffers[name]
            assert new is not None
            kept = new if new.dtype == old.dtype else old.to(new.device)
            if torch._has_compatible_shallow_copy_type(old, kept):
                old.data = kept
                kept = old
            self._buffers[name] = kept
        self.memory = memory
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """Save the buffers; the metadata of the state dict say of which shape the weight is, which no buffer does."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        metadata = getattr(destination, "_metadata", {})
        metadata.setdefault(prefix.removesuffix("."), {})[SHAPE_KEY] = list(self.weight_shape)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Load the buffers; refuse another shape, and other types (they would be cast in silence); renew the cache."""
        local_metadata, error_messages = args[0], args[-1]
        if error := self.shape_error(prefix, local_metadata):
            error_messages.append(error)
            return
        for name, own in self.stored_tensors().items():
            value = state_dict.get(prefix + name)
            if isinstance(value, Tensor) and value.dtype != own.dtype:
                error_messages.append(f"{prefix}{name} must be {own.dtype}, got {value.dtype}.")
                return
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.memory = self.memory

    def shape_error(self, prefix: str, metadata: Mapping[str, Any]) -> str | None:
        """Return a sentence if the metadata of a saved layer tell of a weight of another shape; None if not."""
        saved = metadata.get(SHAPE_KEY)
        if saved is None or list(saved) == list(self.weight_shape):
            return None
        return (
            f"{prefix}packed_codes holds a weight of shape {list(saved)}, and the layer has {list(self.weight_shape)}."
        )


class QuantizesInputs(PackedLayer):
    """Mixin of packed types that can quantize what they are called on; the float type's forward does the rest."""

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Compute what the float layer computes, with the dequantized weight and the quantized inputs."""
        return super().forward(self.quantized_input(input), *args, **kwargs)


def register_packed(packed_type: type[PackedLayer]) -> type[PackedLayer]:
    """Declare the type that replaces the float layer type among its bases, whose layout ``LAYER_KINDS`` knows.

    Example::

        @register_packed
        class PackedLinear(PackedLayer, nn.Linear): ...
    """
    PACKED_TYPES[packed_type.float_type] = packed_type
    return packed_type


def packed_type(module: nn.Module) -> type[PackedLayer]:
    """Return the type that replaces a layer's own; of a subclass it inherits, so that its methods stay.

    Raises:
        TypeError: If the layer is of no registered type, or defines a name that packed layers need.
    """
    known, own = float_class(module), original_class(module)
    if known is None:
        raise TypeError(f"A layer of type {type(module).__name__} cannot be packed.")
    if own in PACKED_TYPES:
        return PACKED_TYPES[own]
    if clash := taken_name(module):
        raise TypeError(
            f"{own.__name__} has {clash!r} for something of its own, a name that packed layers need; rename it, or "
            "keep it in float."
        )
    # A forward of its own must not be passed by, as those of packed types with kernels would.
    mixin = PACKED_TYPES.get(known, PackedLayer) if is_plain(module, known) else PackedLayer
    found: type[PackedLayer] = changed_class(cast(Any, mixin), own)
    return found
