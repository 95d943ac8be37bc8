"""Modules that keep several weights, or one under another name than ``weight``: attention, recurrent and user layers.

Each packed weight is a `PackedWeight`, a submodule by the name that the parameter had, so that buffers, state-dict keys
and bytes are found as those of any packed layer. The module itself stays the same object and becomes an instance of a
subclass of its type in which these names are properties that dequantize: whoever reads ``attention.in_proj_weight``,
``F.multi_head_attention_forward`` and the fast path of TransformerEncoderLayer too, reads the dequantized weight.

So the name leads to a tensor where ``torch.func.functional_call`` and ``torch.export.export(..., strict=False)`` look
for a submodule: export models with such modules by ``strict=True``.
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from ..network.layer_kinds import ParameterView
from ..policy import WeightScheme
from ..tools.attributes import FreshRecurrentWeights
from .packed import PackedLayer, register_packed


@register_packed(ParameterView)
class PackedWeight(PackedLayer, ParameterView):
    """One packed weight of a module; calling it multiplies inputs with the dequantized weight."""

    @classmethod
    def from_float(
        cls,
        layer: nn.Module,
        scheme: WeightScheme,
        packed_codes: Tensor,
        scale: Tensor,
        zero_point: Tensor | None,
    ) -> Self:
        """Build the packed twin of a `ParameterView`; it does not know the module that will hold it."""
        packed = super().from_float(layer, scheme, packed_codes, scale, zero_point)
        del packed.__dict__["owner"]
        return packed


class WeightHolder(nn.Module):
    """Mixin of a module that holds packed weights; made by `attach`, together with the module's own type.

    Attributes:
        float_type: The module's own type.
        held_names: Names of the packed weights.
    """

    float_type: ClassVar[type[nn.Module]]
    held_names: ClassVar[tuple[str, ...]]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Pickle by what the type was made from, since it has no name that could be imported."""
        return _new_holder, (self.float_type, self.held_names), self.__getstate__()


class RecurrentHolder(FreshRecurrentWeights, WeightHolder):
    """LSTM, GRU or RNN with packed weights."""


def attach(owner: nn.Module, attribute: str, weight: PackedWeight | ParameterView) -> None:
    """Give a module a packed weight in the place of a parameter, or the parameter back, in place.

    Args:
        owner: The module.
        attribute: Name of the parameter.
        weight: The packed weight, or the view of the float parameter.
    """
    packed = isinstance(weight, PackedWeight)
    if packed:
        owner._parameters[attribute] = None  # keeps its place in the order of the state dict
        owner._modules[attribute] = weight
    else:
        owner._modules.pop(attribute, None)
        owner._parameters[attribute] = weight.weight  # type: ignore[assignment]
    own_type = type(owner).float_type if isinstance(owner, WeightHolder) else type(owner)
    names = tuple(name for name in owner._parameters if isinstance(owner._modules.get(name), PackedWeight))
    owner.__class__ = _holder_type(own_type, names) if names else own_type
    if isinstance(owner, nn.RNNBase):
        owner._init_flat_weights()


_HOLDER_TYPES: dict[tuple[type[nn.Module], tuple[str, ...]], type[nn.Module]] = {}


def _holder_type(float_type: type[nn.Module], names: tuple[str, ...]) -> type[nn.Module]:
    """Return the subclass of a module type in which some weights are computed from packed ones."""
    if (float_type, names) not in _HOLDER_TYPES:
        mixin = RecurrentHolder if issubclass(float_type, nn.RNNBase) else WeightHolder
        body: dict[str, Any] = {name: property(partial(_packed_weight, name=name)) for name in names}
        body |= {"float_type": float_type, "held_names": names, "__module__": __name__, "__doc__": float_type.__doc__}
        _HOLDER_TYPES[float_type, names] = type(f"Packed{float_type.__name__}", (mixin, float_type), body)
    return _HOLDER_TYPES[float_type, names]


def _packed_weight(holder: nn.Module, name: str) -> Tensor:
    """Return a dequantized weight; the submodule and the property that reads it go by the same name."""
    weight = holder._modules[name]
    assert isinstance(weight, PackedWeight)
    return weight.weight


def _new_holder(float_type: type[nn.Module], names: tuple[str, ...]) -> nn.Module:
    """Return an empty instance of a holder type, for unpickling and copying."""
    kind = _holder_type(float_type, names)
    return kind.__new__(kind)
