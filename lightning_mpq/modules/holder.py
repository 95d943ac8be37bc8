"""Modules that keep several weights, or one under another name than ``weight``: attention, recurrent and user layers.

Each packed weight is a `PackedWeight`, a submodule by the name that the parameter had, so that buffers, state-dict keys
and bytes are found as those of any packed layer. The module itself stays the same object and becomes an instance of a
subclass of its type in which these names are properties that dequantize: whoever reads ``attention.in_proj_weight``,
``F.multi_head_attention_forward`` and the fast path of TransformerEncoderLayer too, reads the dequantized weight.

So the name leads to a tensor where ``torch.func.functional_call`` and ``torch.export.export(..., strict=False)`` look
for a submodule: export models with such modules by ``strict=True``.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

from torch import Tensor, nn

from ..network.layer_kinds import ParameterView
from ..schemes import WeightScheme
from ..tools.attributes import FreshRecurrentWeights, shadowed
from ..tools.changed_class import ChangedClass, change_back, change_class
from ..tools.scripting import NotScriptable
from .packed import PackedLayer, register_packed


@register_packed
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


class WeightHolder(NotScriptable, nn.Module):
    """Mixin of a module that holds packed weights; put in front of the module's own class by `attach`."""

    prefix: ClassVar[str] = "Packed"

    def compute(self, name: str) -> Tensor:
        """Return a dequantized weight; the submodule and the property that reads it go by the same name."""
        weight = self._modules[name]
        assert isinstance(weight, PackedWeight)
        return weight.weight


class ExpertsHolder(WeightHolder):
    """Experts with packed weights, which are read once for each expert and dequantized once for each call."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the experts, and drop the dequantized weights."""
        with shadowed(self, _dequantized={}):
            return super().forward(*args, **kwargs)

    def compute(self, name: str) -> Tensor:
        """Return a dequantized weight, within a call the same one each time."""
        kept: dict[str, Tensor] | None = self.__dict__.get("_dequantized")
        if kept is None:
            return super().compute(name)
        if name not in kept:
            kept[name] = super().compute(name)
        return kept[name]


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
    names = tuple(name for name in owner._parameters if isinstance(owner._modules.get(name), PackedWeight))
    if names:
        change_class(owner, _holder(owner, names), names)
    elif isinstance(owner, ChangedClass):
        change_back(owner)
    if isinstance(owner, nn.RNNBase):
        owner._init_flat_weights()


def _holder(owner: nn.Module, names: tuple[str, ...]) -> type[WeightHolder]:
    if isinstance(owner, nn.RNNBase):
        return RecurrentHolder
    shapes = [weight.weight_shape for name in names if isinstance(weight := owner._modules[name], PackedWeight)]
    return ExpertsHolder if any(len(shape) == 3 for shape in shapes) else WeightHolder
