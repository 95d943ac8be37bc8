"""What shares a decision: layers, user groups, tied weights, and the rules on their bits."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from ..grids.base import ALL_BITS
from ..inputs.sites import input_sites
from ..network.calibration import Calibration
from ..network.layer_kinds import kind_of, rows_and_columns, taken_name
from ..network.named_weights import held_by, held_weights, named_layers
from ..network.used_weights import unused_weights
from ..schemes import LayerScheme, WeightScheme
from ..tools.checks import shown
from ..tools.patterns import matching
from .coverage import Coverage, coverage_of
from .fused import Fuse, check_fuse, fused
from .partition import partition

BLOCKS = (128, 64, 32)
"""Lengths of blocks of columns, the first that divides the columns of a wide Linear layer being offered."""
WIDE = 256
"""Columns from which a Linear layer is wide: one scale for so many weights has to reach for the largest of them."""


@dataclass(frozen=True)
class LayerGroup:
    """Layers whose weights share one decision.

    Attributes:
        name: Name of the group: the layer's own, or the one the user gave.
        layers: Qualified names of its layers.
        shapes: (rows, columns) of each distinct weight; a tied weight stands here once.
        bits: Widths that the rules allow, ascending.
        block: Length of the blocks of columns that are offered beside channels to share a scale; None for layers that
            are no wide matrices.
        inputs: What may share the range of quantized inputs in all its layers (see `InputScheme`); nothing
            where inputs of some layer cannot be quantized.
    """

    name: str
    layers: tuple[str, ...]
    shapes: tuple[tuple[int, int], ...]
    bits: tuple[int, ...] = ALL_BITS
    block: int | None = None
    inputs: tuple[str, ...] = ()

    @property
    def weight_count(self) -> int:
        """Number of weights, a tied one counted once."""
        return sum(rows * columns for rows, columns in self.shapes)

    def stored_bits(self, scheme: LayerScheme | WeightScheme) -> int:
        """Bits that the group occupies under a scheme, scales and zero points included, those of inputs too."""
        inputs = LayerScheme.of(scheme).quantized_input
        of_inputs = 0 if inputs is None else len(self.layers) * inputs.stored_bits
        return of_inputs + sum(scheme.stored_bits(rows, columns) for rows, columns in self.shapes)


@dataclass(frozen=True)
class LayerGroups(Sequence[LayerGroup]):
    """The groups of a model, and what stays in float.

    Attributes:
        groups: The groups, in the order of their first layer.
        left_in_float: Layer name to the reason why it is not quantized.
        float_bytes: Bytes of every parameter and buffer that stays as it is and counts in a budget.
        unused_bytes: Bytes of the weights that no output is computed with, which count in no budget.
        coverage: How many of the model's parameters the groups hold; None where nobody counted.
    """

    groups: tuple[LayerGroup, ...]
    left_in_float: Mapping[str, str] = field(default_factory=dict)
    float_bytes: int = 0
    unused_bytes: int = 0
    coverage: Coverage | None = None

    def __getitem__(self, index: int) -> LayerGroup:  # type: ignore[override]
        """Return one group."""
        return self.groups[index]

    def __len__(self) -> int:
        """Return the number of groups."""
        return len(self.groups)

    def __iter__(self) -> Iterator[LayerGroup]:
        """Iterate over the groups."""
        return iter(self.groups)

    def without(self, model: nn.Module, names: Collection[str], reason: str) -> LayerGroups:
        """Return the same with some groups left in float, which then count in no budget."""
        named = named_layers(model)
        left = {layer: named[layer] for group in self if group.name in names for layer in group.layers}
        return replace(
            self,
            groups=tuple(group for group in self if group.name not in names),
            left_in_float={**self.left_in_float, **dict.fromkeys(left, reason)},
            unused_bytes=self.unused_bytes + _bytes_of(left),
        )


def find_groups(
    model: nn.Module,
    groups: Mapping[str, str | Sequence[str]] | None = None,
    *,
    keep_float: Iterable[str] = (),
    fixed_bits: Mapping[str, int] | None = None,
    min_bits: Mapping[str, int] | None = None,
    max_bits: Mapping[str, int] | None = None,
    fuse: Fuse = (),
    batches: Iterable[Any] | Calibration | None = None,
    ties: Iterable[Sequence[str]] = (),
    refuse: Callable[[LayerGroup], str | None] | None = None,
) -> LayerGroups:
    r"""Find the layers to quantize and which of them are decided together.

    A pattern is a shell glob on qualified layer names (``"layer1.*"``), or a regular expression after
    ``re:`` (``"re:layer[12]\..*conv.*"``) that must match the whole name.

    Args:
        model: Any module. Found are Linear, Conv1d/2d/3d, ConvTranspose1d/2d/3d, Bilinear and Embedding layers, the
            projections of MultiheadAttention (``attention.in_proj_weight``, ``attention.out_proj``), the weights of
            LSTM, GRU, RNN and their cells (``lstm.weight_hh_l0``), Conv1D of transformers, experts fused to tensors
            [E, out, in], subclasses that wrap the operation of Linear, Conv or Embedding, and layers of types that
            `register_layer` knows.
        groups: Group name to one pattern or several. All layers they match share one scheme. Layers that
            no pattern matches form a group each; layers that share a weight share a group by themselves.
        keep_float: Patterns of layers that are not quantized.
        fixed_bits: Pattern to the one width its layers get.
        min_bits: Pattern to the least width its layers may get.
        max_bits: Pattern to the largest width its layers may get.
        fuse: Which layers of one module share a decision because a runtime computes them as one, as sets of the last
            parts of their names: ``[("q_proj", "k_proj", "v_proj")]``; or ``"vllm"`` for those that vLLM fuses.
        batches: Calibration batches, or a `Calibration` that says how the model is called on them: weights that the
            model does not use for its outputs on them (a teacher, a discriminator, the network within a metric or a
            loss, an expert that no sample reaches) then stay in float and count in no budget. None if all are used.
        ties: Sets of names of layers that share one decision whatever the patterns say, as layers do that a runtime
            fuses (`Target.ties`).
        refuse: Returns why a group stays in float, as one does that a runtime cannot hold; None if it does not.

    Returns:
        The groups with the widths each may take, and the layers left in float with the reason. If they hold less than
        nine tenths of the model's parameters, a warning names the rest.

    Raises:
        ValueError: If nothing can be quantized, a pattern matches nothing, a layer falls in two groups,
            or the rules leave a group no width.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> [(g.name, g.weight_count, g.bits) for g in find_groups(net, max_bits={"2": 4})]
        [('0', 32, (2, 3, 4, 5, 6, 7, 8)), ('2', 16, (2, 3, 4))]
    """
    layers, left_in_float = _quantizable_layers(model)
    everything, kept = named_layers(model), dict[str, nn.Module]()
    for pattern in keep_float:
        for name in matching(pattern, {**layers, **kept, **dict.fromkeys(left_in_float)}, "keep_float"):
            if layers.pop(name, None) is not None:
                left_in_float[name] = f"kept in float by the pattern {pattern!r}"
            kept[name] = everything[name]
    unused: list[str] = []
    if batches is not None and layers:
        unused = unused_weights(Calibration.of(model, batches), layers)
        left_in_float |= dict.fromkeys(unused, UNUSED)
        layers = {name: layer for name, layer in layers.items() if name not in unused}
    if not layers:
        raise _nothing_left(model, left_in_float)
    without = {name: everything[name] for name in unused}
    known = {**layers, **without}  # patterns may name what turns out to be unused
    check_fuse(fuse)
    members = partition(known, groups or {}, [*fused(model, fuse), *ties])
    allowed = _allowed_bits(known, fixed_bits or {}, min_bits or {}, max_bits or {})
    of_used = {name: [layer for layer in names if layer in layers] for name, names in members.items()}
    sites = input_sites(model).keys()
    found = tuple(_make_group(name, names, layers, allowed, sites) for name, names in of_used.items() if names)
    reasons = {group.name: reason for group in found if refuse is not None and (reason := refuse(group)) is not None}
    for group in found:
        if group.name in reasons:
            left_in_float |= dict.fromkeys(group.layers, reasons[group.name])
            kept |= {layer: layers.pop(layer) for layer in group.layers}
    found = tuple(group for group in found if group.name not in reasons)
    if not found:
        raise _nothing_left(model, left_in_float)
    unused_bytes = _bytes_of(without)
    if unused:
        _say_unused(unused, unused_bytes)
    coverage = coverage_of(model, layers, {**kept, **without})
    coverage.warn()
    return LayerGroups(found, left_in_float, _float_bytes(model, layers) - unused_bytes, unused_bytes, coverage)


def _nothing_left(model: nn.Module, left_in_float: Mapping[str, str]) -> ValueError:
    reasons = "; ".join(f"{name}: {reason}" for name, reason in left_in_float.items())
    return ValueError(
        f"{type(model).__name__} has no layer to quantize (Linear, Conv1d/2d/3d, ConvTranspose1d/2d/3d, "
        f"Embedding, attention, recurrent or registered layers with floating-point weights). {reasons}".rstrip()
    )


UNUSED = "no output is computed with it on the calibration batches"
"""Why such weights stay in float."""


def _say_unused(names: Sequence[str], size: int) -> None:
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    warnings.warn(
        f"No output is computed with the weights of {shown} on the calibration batches: they stay in float, and their "
        f"{size:,} bytes count in no budget. If they matter elsewhere (a decoder, a second head), say by forward_fn= "
        "what the model computes; if they do not, delete them before the model is saved.",
        UserWarning,
        stacklevel=3,
    )


def _quantizable_layers(model: nn.Module) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """Return name -> layer for what can be quantized, and name -> reason for what cannot."""
    layers: dict[str, nn.Module] = {}
    refused: dict[str, str] = {}
    for name, module in named_layers(model).items():
        if "weight_quantizers" in held_by(module)[0].__dict__ and "weight" in module._parameters:
            refused[name] = "it is fake-quantized; restore it, or look at it inside of float_weights()"
        elif is_parametrized(module):
            refused[name] = "its weight is computed by a parametrization; remove it first"
        elif "packed_codes" in module._buffers:
            refused[name] = "it is packed already; start from the float model"
        elif kind_of(module) is None:
            if any(
                p.dim() > 1 for n, p in module._parameters.items() if p is not None and n not in held_weights(module)
            ):
                refused[name] = (
                    f"layers of type {type(module).__name__} are not known; register_layer makes them known, if "
                    "forward does no more with their weights than to compute with them"
                )
        elif "weight" not in module._parameters:
            refused[name] = (
                "its weight is not a parameter (weight_norm, pruning that is not made permanent, or a lazy layer?)"
            )
        elif not isinstance(module.weight, Tensor) or not module.weight.is_floating_point():
            refused[name] = "its weight is not a floating-point tensor"
        elif module.weight.numel() == 0:
            refused[name] = "its weight is empty"
        elif clash := taken_name(module):
            refused[name] = f"it has {clash!r} for something of its own, a name that packed layers need; rename it"
        else:
            layers[name] = module
    return layers, refused


def _allowed_bits(
    layers: Mapping[str, nn.Module],
    fixed: Mapping[str, int],
    least: Mapping[str, int],
    most: Mapping[str, int],
) -> dict[str, set[int]]:
    """Return layer -> widths that every rule allows."""
    allowed = {name: set(ALL_BITS) for name in layers}
    rules = (("fixed_bits", fixed, int.__eq__), ("min_bits", least, int.__ge__), ("max_bits", most, int.__le__))
    for rule, patterns, keeps in rules:
        for pattern, bits in patterns.items():
            if isinstance(bits, bool) or not isinstance(bits, int) or bits not in ALL_BITS:
                raise ValueError(f"{rule}[{pattern!r}] must be an integer from 2 to 8, got {shown(bits)}.")
            for name in matching(pattern, layers, rule):
                allowed[name] = {width for width in allowed[name] if keeps(width, bits)}
                if not allowed[name]:
                    raise ValueError(
                        f"{rule}[{pattern!r}] = {bits} contradicts an earlier rule: no width is left for {name!r}. "
                        "Relax one."
                    )
    return allowed


def _make_group(
    name: str,
    names: Sequence[str],
    layers: Mapping[str, nn.Module],
    allowed: Mapping[str, set[int]],
    sites: Set[str],
) -> LayerGroup:
    bits = set.intersection(*(allowed[layer] for layer in names))
    if not bits:
        raise ValueError(
            f"The rules leave the group {name!r} no width that all its layers may take: {names}. Relax one."
        )
    distinct = {id(layers[layer].weight): rows_and_columns(layers[layer]) for layer in names}
    shapes = tuple(distinct.values())
    block = _block([layers[n] for n in names], shapes)
    inputs = ("tensor", "token") if all(isinstance(layers[n], nn.Linear) for n in names) else ("tensor",)
    known = inputs if sites >= set(names) else ()
    return LayerGroup(name, tuple(names), shapes, tuple(sorted(bits)), block, known)


def _block(layers: Sequence[nn.Module], shapes: Iterable[tuple[int, int]]) -> int | None:
    """Return the longest block that no row is too short for, or ends within; None unless rows multiply vectors."""
    operations = {kind.operation for layer in layers if (kind := kind_of(layer)) is not None}
    if "linear" not in operations or not operations <= {"linear", "lookup"}:
        return None
    columns = [count for _, count in shapes]
    if min(columns) < WIDE:
        return None
    return next((block for block in BLOCKS if not any(count % block for count in columns)), None)


def _bytes_of(layers: Mapping[str, nn.Module]) -> int:
    """Bytes of the weights of layers, shared ones once."""
    weights = {id(layer.weight): layer.weight for layer in layers.values() if isinstance(layer.weight, Tensor)}
    return sum(weight.numel() * weight.element_size() for weight in weights.values())


def _float_bytes(model: nn.Module, layers: Mapping[str, nn.Module]) -> int:
    """Bytes of all parameters and buffers but the weights that are quantized; shared ones once."""
    quantized = {id(layer.weight) for layer in layers.values()}
    tensors = {id(t): t for t in [*model.parameters(), *model.buffers()] if id(t) not in quantized}
    return sum(t.numel() * t.element_size() for t in tensors.values())
