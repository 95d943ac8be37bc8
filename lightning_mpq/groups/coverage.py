"""How many of a model's parameters are quantized, said before anything is measured.

An average of bits is one over the weights that were found. Where most of a model was not, such a number is true and
says nothing, so that what it is an average of is said beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList, type_before_parametrizations

from ..network.layer_kinds import kind_of
from ..tools.warning import warn

ENOUGH = 0.9
"""Part of the parameters below which a warning is due."""
_SHOWN = 4
_COMPUTED = " whose weight is computed"
"""After the type of a layer whose weight is made from other parameters."""
_REGISTER = (
    "register_layer(TYPE, like=nn.Linear) makes a type known that computes as a layer does, "
    "register_layer(TYPE, ['NAME', ...]) any other"
)
_MAKE_PLAIN = (
    "a computed weight becomes a plain one by torch.nn.utils.parametrize.remove_parametrizations, "
    "torch.nn.utils.remove_weight_norm or torch.nn.utils.prune.remove, whichever made it"
)


@dataclass(frozen=True)
class Coverage:
    """How many of a model's parameters are quantized; shared ones count once.

    Attributes:
        quantized: Parameters that get bits.
        total: Parameters of the model.
        rest: What stays in float though nobody asked for it, largest first: the module's type to the names of its
            modules and how many parameters they hold in matrices and larger tensors. Biases and norms are never
            quantized and do not stand here.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 2), nn.PReLU(), nn.Linear(2, 3))
        >>> coverage_of(net, {"0": net[0]})
        Coverage(quantized=8, total=20, rest={'Linear': (('2',), 6)})
    """

    quantized: int
    total: int
    rest: Mapping[str, tuple[tuple[str, ...], int]] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Coverage:
        """Build it from what ``asdict`` returned, also after a detour through JSON."""
        rest = {kind: (tuple(names), int(count)) for kind, (names, count) in values["rest"].items()}
        return cls(int(values["quantized"]), int(values["total"]), rest)

    @property
    def share(self) -> float:
        """Part of the parameters that is quantized."""
        return self.quantized / max(self.total, 1)

    def __str__(self) -> str:
        """Return what an average of bits is an average of.

        Example:
            >>> str(Coverage(90, 100))
            '90 of 100 parameters (90.0 %)'
        """
        return f"{self.quantized:,} of {self.total:,} parameters ({100 * self.share:.1f} %)"

    @property
    def warning(self) -> str | None:
        """Return what to say if too little was found and something can be done; None otherwise."""
        if self.share >= ENOUGH or not self.rest:
            return None
        shown = "; ".join(_described(kind, *found) for kind, found in list(self.rest.items())[:_SHOWN])
        more = len(self.rest) - _SHOWN
        computed = [kind.endswith(_COMPUTED) for kind in self.rest]
        ways = [_REGISTER] * (not all(computed)) + [_MAKE_PLAIN] * any(computed)
        return (
            f"Only {self} can be quantized; averages of bits are over these alone. Left in float: {shown}"
            f"{f'; and {more} more types' if more > 0 else ''}. {'; '.join(ways)}; keep_float=[...] says that it is "
            "meant so."
        )

    def warn(self) -> None:
        """Warn if too little was found and something can be done."""
        if text := self.warning:
            warn(text)


def coverage_of(
    model: nn.Module, layers: Mapping[str, nn.Module], kept: Mapping[str, nn.Module] | None = None
) -> Coverage:
    """Count the parameters of a model that are quantized.

    Args:
        model: The model.
        layers: Name to layer, or view, that is quantized.
        kept: The same of those, known or not, that are kept in float on purpose.
    """
    quantized = {id(layer.weight) for layer in layers.values()}
    meant = quantized | {id(p) for layer in (kept or {}).values() for p in layer._parameters.values()}
    names: dict[str, list[str]] = {}
    sizes: dict[str, int] = {}
    seen: set[int] = set()
    counts = [0, 0]
    for name, module in model.named_modules():
        kind, layer_name = _kind_of_rest(model, name, module)
        for parameter in module._parameters.values():
            if parameter is None or id(parameter) in seen or is_lazy(parameter):
                continue
            seen.add(id(parameter))
            counts[id(parameter) in quantized] += parameter.numel()
            if sum(size > 1 for size in parameter.shape) > 1 and id(parameter) not in meant:
                sizes[kind] = sizes.get(kind, 0) + parameter.numel()
                names.setdefault(kind, []).append(layer_name)
    largest = sorted(sizes, key=lambda kind: -sizes[kind])
    rest = {kind: (tuple(dict.fromkeys(names[kind])), sizes[kind]) for kind in largest}
    return Coverage(counts[1], sum(counts), rest)


def _kind_of_rest(model: nn.Module, name: str, module: nn.Module) -> tuple[str, str]:
    """Return how a module's kind is called that stays in float, and the layer that its parameters belong to."""
    if isinstance(module, ParametrizationList):
        name = name.rpartition(".parametrizations.")[0]
        layer = model.get_submodule(name)
        return type_before_parametrizations(layer).__name__ + _COMPUTED, name
    computed = kind_of(module) is not None and "weight" not in module._parameters
    return type(module).__name__ + _COMPUTED * computed, name


def _described(kind: str, names: tuple[str, ...], count: int) -> str:
    """Return one line of the rest, such as ``12 x Conv1D ('h.0.attn.c_attn', ...), 85,054,464``."""
    shown = ", ".join(repr(name) for name in names[:2]) + (", ..." if len(names) > 2 else "")
    return f"{len(names)} x {kind} ({shown}), {count:,}"
