"""Weights by name: those of layers, and those that a module keeps under names of its own.

The name of a weight is that of its layer where the parameter is called ``weight`` (``encoder.linear1``), and the
qualified name of the parameter otherwise (``encoder.self_attn.in_proj_weight``, ``lstm.weight_hh_l0``). Under either
name stands a module with one ``weight``: the layer, or a `ParameterView`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torch import Size, Tensor, nn

from ..tools.attributes import shadowed
from ..tools.checks import is_number, shown
from .experts import expert_weights, is_transposed
from .layer_kinds import LAYER_KINDS, LayerKind, ParameterView
from .own_operation import DECLARED, OPERATIONS

_ATTENTION = {"in_proj_weight": LayerKind(parts=3)}  # rows for queries, keys and values
_ATTENTION |= dict.fromkeys(("q_proj_weight", "k_proj_weight", "v_proj_weight"), LayerKind())
_NONLINEAR = LayerKind(operation="nonlinear")
_GATED = LayerKind(operation="nonlinear", fused=True)


def _attention_weights(module: nn.Module) -> dict[str, LayerKind]:
    return _ATTENTION  # the output projection is a Linear layer of its own


def _recurrent_weights(module: nn.Module) -> dict[str, LayerKind]:
    assert isinstance(module, nn.RNNBase)
    kind = _NONLINEAR if isinstance(module, nn.RNN) else _GATED
    return {name: kind for name in module._flat_weights_names if name.startswith("weight")}


def _cell_weights(module: nn.Module) -> dict[str, LayerKind]:
    return dict.fromkeys(("weight_ih", "weight_hh"), _NONLINEAR)


HOLDERS: dict[type[nn.Module], Callable[[nn.Module], dict[str, LayerKind]]] = {
    nn.MultiheadAttention: _attention_weights,
    nn.LSTM: _recurrent_weights,
    nn.GRU: _recurrent_weights,
    nn.RNN: _recurrent_weights,
    nn.LSTMCell: _cell_weights,
    nn.GRUCell: _cell_weights,
    nn.RNNCell: _cell_weights,
}
"""Module type to the parameters that it may hold, and how it uses each."""


def register_layer(
    layer_type: type[nn.Module],
    weights: Sequence[str] = ("weight",),
    *,
    like: type[nn.Module] | None = None,
    linear: bool = True,
    output_dim: int = 0,
) -> None:
    """Let weights of a layer type of your own be found, measured, rounded and packed.

    The type's ``forward`` may do anything with its weights, as long as it reads them as attributes of the module
    (``self.weight``). Once packed, these are computed from the stored codes when they are read.

    Subclasses of Linear, Conv1d/2d/3d and Embedding that give ``self.weight`` to the parent's function once, after
    any work on the inputs, are known without a word where a try without values shows it; where it does not, ``like``
    says it.

    Args:
        layer_type: The type. Subclasses count as long as they inherit its ``forward``.
        weights: Names of its parameters to quantize. ``weight`` alone goes by the name of its layer; several, or
            others, each by the qualified name of the parameter.
        like: The layer type whose function ``forward`` gives ``self.weight`` to: nn.Linear, nn.Conv1d, nn.Conv2d,
            nn.Conv3d or nn.Embedding. Its inputs are then those of that function, as second-order and sequential
            rounding need them; ``linear`` and ``output_dim`` are not asked.
        linear: Whether outputs are linear in each weight (with the others as they are), plus whatever does not
            depend on it. Scores for ``fisher`` then come from one backward pass for all layers. They are compared
            with automatic differentiation on the first batch, so that a wrong answer costs time only. With
            False, or if the comparison fails, each candidate takes a forward-mode pass of its own.
        output_dim: Dimension of the weights along which output channels lie; a scale belongs to one of them.

    Raises:
        TypeError: If it is no module type, one that is known already, or no subclass of a convolution in ``like``, or
            ``output_dim`` is no number.
        ValueError: If there is no weight, or ``like`` is no type that can be wrapped.

    Example:
        >>> import torch
        >>> class Scaled(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.weight = nn.Parameter(torch.randn(4, 3))
        ...     def forward(self, x):
        ...         return 2 * x @ self.weight  # [in, out]
        >>> register_layer(Scaled, output_dim=1)
        >>> from lightning_mpq import find_groups
        >>> find_groups(nn.Sequential(Scaled()))[0].shapes
        ((3, 4),)
    """
    if not (isinstance(layer_type, type) and issubclass(layer_type, nn.Module)):
        raise TypeError(f"Expected a subclass of nn.Module, got {shown(layer_type)}.")
    names = [weights] if isinstance(weights, str) else list(weights)
    if not names:
        raise ValueError(f"Name at least one parameter of {layer_type.__name__} in weights=.")
    if layer_type in BUILT_IN:
        raise TypeError(f"{layer_type.__name__} is known already; register a type of your own.")
    if like is not None:
        _check_like(layer_type, names, like)
    elif not is_number(output_dim, whole=True):
        raise TypeError(f"output_dim must be the number of a dimension, got {shown(output_dim)}.")
    LAYER_KINDS.pop(layer_type, None)
    HOLDERS.pop(layer_type, None)
    DECLARED.pop(layer_type, None)
    if like is not None:
        DECLARED[layer_type] = like
        return
    kind = LayerKind.along(output_dim, "any" if linear else "nonlinear")
    if names == ["weight"]:
        LAYER_KINDS[layer_type] = kind
    else:
        HOLDERS[layer_type] = lambda module: dict.fromkeys(names, kind)


def _check_like(layer_type: type[nn.Module], names: Sequence[str], like: type[nn.Module]) -> None:
    if like not in OPERATIONS:
        wrapped = ", ".join(kind.__name__ for kind in OPERATIONS)
        raise ValueError(f"like must be one of {wrapped}, got {like!r}. Register other types without like=.")
    if list(names) != ["weight"]:
        raise ValueError(f"A layer like {like.__name__} has one weight called 'weight', got {list(names)}.")
    if like is not nn.Linear and not issubclass(layer_type, like):
        raise TypeError(
            f"{layer_type.__name__} is no subclass of {like.__name__}, whose attributes (kernel_size, stride, ...) say "
            "what it computes. Derive it from there, or register it without like=."
        )


BUILT_IN = frozenset((*LAYER_KINDS, *HOLDERS))
"""Types that `register_layer` must leave alone."""


def held_weights(module: nn.Module) -> dict[str, LayerKind]:
    """Return the weights that a module keeps under names of its own, and how it uses each; empty if it keeps none."""
    for holder, names in HOLDERS.items():
        if isinstance(module, holder) and type(module).forward is holder.forward:
            return {name: kind for name, kind in names(module).items() if module._parameters.get(name) is not None}
    return {name: _experts_kind(module, name) for name in expert_weights(module)}


def _experts_kind(module: nn.Module, name: str) -> LayerKind:
    """Return the kind of a fused weight: a row for each output of each expert, which has inputs of its own."""
    weight = module._parameters[name]
    assert weight is not None
    if is_transposed(module):
        return LayerKind(_rows_of_transposed_experts, _transposed_experts, parts=len(weight))
    return LayerKind(_rows_of_experts, _experts, parts=len(weight))


def _rows_of_experts(weight: Tensor, groups: int) -> Tensor:
    return weight.reshape(-1, weight.shape[2])


def _experts(rows: Tensor, shape: Size, groups: int) -> Tensor:
    return rows.reshape(shape)


def _rows_of_transposed_experts(weight: Tensor, groups: int) -> Tensor:
    return weight.transpose(1, 2).reshape(-1, weight.shape[1])


def _transposed_experts(rows: Tensor, shape: Size, groups: int) -> Tensor:
    return rows.reshape(shape[0], shape[2], shape[1]).transpose(1, 2)


def named_layers(model: nn.Module, remove_duplicate: bool = True) -> dict[str, nn.Module]:
    """Return every module by name, as ``named_modules`` does, and a view of every weight held under another name.

    Args:
        model: Any module.
        remove_duplicate: Whether a module that is registered twice stands only under its first name.
    """
    views: dict[int, dict[str, ParameterView]] = {}
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules(remove_duplicate=remove_duplicate):
        found[name] = module
        if id(module) not in views:
            kinds = held_weights(module)
            views[id(module)] = {own: ParameterView(module, own, kind) for own, kind in kinds.items()}
        found |= {f"{name}.{own}" if name else own: view for own, view in views[id(module)].items()}
    return found


def held_by(layer: nn.Module) -> tuple[nn.Module, str]:
    """Return the module that holds a layer's weight as a parameter, and the parameter's name there."""
    return (layer.owner, layer.attribute) if isinstance(layer, ParameterView) else (layer, "weight")


@contextmanager
def standing_in(layer: nn.Module, weight: Tensor) -> Iterator[None]:
    """Let a tensor stand in for the weight of a layer; the Parameter and its name stay untouched."""
    owner, attribute = held_by(layer)
    shadows: dict[str, object] = {attribute: weight}
    if isinstance(owner, nn.RNNBase):  # its list of all weights is made anew when one of them is another tensor
        shadows |= {name: list(owner.__dict__[name]) for name in ("_flat_weights", "_flat_weight_refs")}
    with shadowed(owner, **shadows):
        yield
