"""The verb `find_groups`: what shares a decision, by the user's patterns, tied weights and what a runtime fuses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from ..inputs.sites import input_sites
from ..network.calibration import Calibration
from ..network.named_weights import named_layers
from ..network.used_weights import unused_weights
from ..tools.checks import check_list, check_mapping
from ..tools.kinds import checked_kinds
from ..tools.patterns import matching
from ..tools.warning import warn
from .coverage import coverage_of
from .fused import Fuse, check_fuse, fused
from .layer_groups import LayerGroup, LayerGroups, weight_bytes
from .making import allowed_bits, make_group
from .partition import partition
from .quantizable import quantizable_layers


@checked_kinds
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
            [E, out, in] or [E, in, out], subclasses that wrap the operation of Linear, Conv or Embedding, and layers of
            types that `register_layer` knows.
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
    check_list("keep_float", keep_float, ["*.head"])
    check_mapping("groups", groups or {}, {"a name": ["block1.*"]})
    for rule, widths in (("fixed_bits", fixed_bits), ("min_bits", min_bits), ("max_bits", max_bits)):
        check_mapping(rule, widths or {}, {"*.head": 8})
    layers, left_in_float = quantizable_layers(model)
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
    allowed = allowed_bits(known, fixed_bits or {}, min_bits or {}, max_bits or {})
    of_used = {name: [layer for layer in names if layer in layers] for name, names in members.items()}
    sites = input_sites(model).keys()
    found = tuple(make_group(name, names, layers, allowed, sites) for name, names in of_used.items() if names)
    reasons = {group.name: reason for group in found if refuse is not None and (reason := refuse(group)) is not None}
    for group in found:
        if group.name in reasons:
            left_in_float |= dict.fromkeys(group.layers, reasons[group.name])
            kept |= {layer: layers.pop(layer) for layer in group.layers}
    found = tuple(group for group in found if group.name not in reasons)
    if not found:
        raise _nothing_left(model, left_in_float)
    unused_bytes = weight_bytes(without)
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
    warn(
        f"No output is computed with the weights of {shown} on the calibration batches: they stay in float, and their "
        f"{size:,} bytes count in no budget. If they matter elsewhere (a decoder, a second head), say by forward_fn= "
        "what the model computes; if they do not, delete them before the model is saved."
    )


def _float_bytes(model: nn.Module, layers: Mapping[str, nn.Module]) -> int:
    """Bytes of all parameters and buffers but the weights that are quantized; shared ones once."""
    quantized = {id(layer.weight) for layer in layers.values()}
    tensors = {id(t): t for t in [*model.parameters(), *model.buffers()] if id(t) not in quantized}
    return sum(t.numel() * t.element_size() for t in tensors.values())
