"""What a target leaves of all candidates, at its own prices, and policies that do not fit it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from ..grids.base import ALL_BITS
from ..grids.registry import DEFAULT_GRIDS, grid_named
from ..groups.candidates import Candidate
from ..groups.groups import LayerGroup, LayerGroups, find_groups
from ..network.calibration import Calibration
from ..network.named_weights import named_layers
from ..options import CandidateOptions
from ..policy import BitPolicy
from ..schemes import InputScheme, LayerScheme, WeightScheme
from .base import Target

_SHOWN = 4


def offer(
    target: Target,
    model: nn.Module,
    options: CandidateOptions,
    batches: Iterable[Any] | Calibration | None = None,
) -> tuple[LayerGroups, tuple[Candidate, ...]]:
    """Find the groups of a model, those that a target ties being one, and what it can hold of each, at its price.

    A candidate that is held in more bits than it has, as 3 are in 4, is left out where another has more bits in the
    same blocks and takes no more. So is one that the target computes slowly, where it computes another of one bit less
    faster.

    Args:
        target: The target.
        model: The float model.
        options: What may be quantized, and how.
        batches: As for `find_groups`.

    Returns:
        The groups, those that it can hold nothing of being left in float with the reason, and their candidates.

    Raises:
        ValueError: As `find_groups` and `make_candidates` do; or if rules leave a group only what the target cannot
            hold, though it can hold others.
    """
    layers = named_layers(model, remove_duplicate=False)
    if options.schemes is None and (own_schemes := target.schemes(options.rounding)) is not None:
        options = replace(options, schemes=[scheme for scheme in own_schemes if scheme.bits in options.bits])

    def on_menu(group: LayerGroup) -> list[Candidate]:
        candidates = options.candidates(LayerGroups((group,)))
        return [c for c in candidates if _why_not(target, group.layers, layers, c.scheme) is None]

    def refuse(group: LayerGroup) -> str | None:
        if on_menu(group):
            return None
        first = options.candidates(LayerGroups((group,)))[0].scheme
        layer, reason = _why_not(target, group.layers, layers, first) or ("", "")
        near = nearest(target, [layers[name] for name in group.layers], first.weight)
        if near is not None:
            raise ValueError(
                f"{target.name} cannot hold what is offered to the group {group.name!r}, such as {first}: {reason}. It "
                f"could hold {near}: offer that, relax the rules on the group, or leave it in float by keep_float."
            )
        return f"{target.name} cannot hold it: {reason}" + (f" ({layer})" if len(group.layers) > 1 else "")

    groups = find_groups(model, **options.rules(), batches=batches, ties=target.ties(model), refuse=refuse)
    found: list[Candidate] = []
    for group in groups:
        own = on_menu(group)
        priced = [replace(c, stored_bits=_price(target, group, layers, c.scheme)) for c in own]
        dearer = {now for before, now in zip(own, priced, strict=True) if now.stored_bits > before.stored_bits}
        slow = {c for c in priced if any(target.is_slow(layers[name], c.scheme) for name in group.layers)}
        quick = [c for c in priced if c not in slow]
        worth = [c for c in priced if c not in slow or not _is_matched(c, quick, fewer=1)]
        found += [c for c in worth if c not in dearer or not _is_matched(c, worth)]
    return groups, tuple(found)


def refuse_policy(target: Target, model: nn.Module, policy: BitPolicy) -> None:
    """Refuse a policy that was made for something else.

    Args:
        target: The target.
        model: The model, float or packed.
        policy: The policy.

    Raises:
        ValueError: If a layer cannot have its scheme, or layers that must agree do not; they are named, with the
            nearest schemes that would fit.
    """
    if wrong := obstacles(target, model, policy):
        more = f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise ValueError(
            f"The policy does not fit the target {target.name!r}: {'; '.join(wrong[:_SHOWN])}{more}. "
            f"MixedPrecisionQuantization(budget, target={target.name!r}) decides one that does."
        )


def obstacles(target: Target, model: nn.Module, policy: BitPolicy) -> list[str]:
    """Return what keeps a target from holding a policy, one phrase for each layer or set of layers; nothing if it can.

    Args:
        target: The target.
        model: The model, float or packed.
        policy: The policy.
    """
    layers = named_layers(model, remove_duplicate=False)
    schemes = policy.weights()
    wrong = []
    for name, inputs in policy.inputs().items():
        if name in layers and (reason := _why_not_inputs(target, layers[name], schemes[name], inputs)) is not None:
            wrong.append(f"{name!r} ({schemes[name]}, {inputs}): {reason}; its inputs must stay in float")
    for name, scheme in schemes.items():
        if name in layers and (reason := target.why_not(layers[name], scheme)) is not None:
            near = nearest(target, [layers[name]], scheme)
            wrong.append(f"{name!r} ({scheme}): {reason}; {f'nearest: {near}' if near else 'it must stay in float'}")
    for tie in target.ties(model):
        if len({schemes.get(name) for name in tie}) > 1:
            have = ", ".join(f"{name!r} {schemes.get(name, 'float')}" for name in tie[:_SHOWN])
            wrong.append(f"these must agree: {have}")
    return wrong


def nearest(target: Target, layers: Sequence[nn.Module], scheme: WeightScheme) -> WeightScheme | None:
    """Return the scheme nearest to another one that layers can have: first in width, rather more than less; then in
    granularity and grid. None if they can have none.
    """  # noqa: D205
    return min(
        (other for other in _others(target, scheme) if all(target.why_not(layer, other) is None for layer in layers)),
        key=lambda other: (
            abs(other.bits - scheme.bits),
            other.bits < scheme.bits,
            other.granularity != scheme.granularity,
            other.grid != scheme.grid,
        ),
        default=None,
    )


def _others(target: Target, scheme: WeightScheme) -> Iterator[WeightScheme]:
    if (own := target.schemes(scheme.rounding)) is not None:
        yield from own
        return
    for bits in ALL_BITS:
        for granularity in dict.fromkeys((scheme.granularity, "channel", 128, 64, 32, "tensor")):
            for grid in dict.fromkeys((scheme.grid, *DEFAULT_GRIDS)):
                if bits in grid_named(grid).bits:
                    yield replace(scheme, bits=bits, granularity=granularity, grid=grid)


def _why_not(
    target: Target, names: Sequence[str], layers: Mapping[str, nn.Module], scheme: LayerScheme
) -> tuple[str, str] | None:
    """Return the first of several layers that cannot have a scheme, and why; None if all can."""
    inputs = scheme.quantized_input
    for name in names:
        if (reason := target.why_not(layers[name], scheme.weight)) is not None:
            return name, reason
        if inputs is not None and (reason := _why_not_inputs(target, layers[name], scheme.weight, inputs)) is not None:
            return name, reason
    return None


def _why_not_inputs(target: Target, layer: nn.Module, weight: WeightScheme, inputs: InputScheme) -> str | None:
    reason = target.why_not_inputs(layer, inputs)
    return target.why_not_pair(layer, weight, inputs) if reason is None else reason


def stored_bytes_in(target: Target, model: nn.Module, groups: Iterable[LayerGroup], policy: BitPolicy) -> int:
    """Return the bytes of codes, scales and zero points of a policy in a target's file, which can hold it."""
    layers = named_layers(model, remove_duplicate=False)
    return sum(_price(target, group, layers, policy[group.name]) for group in groups) // 8


def _price(target: Target, group: LayerGroup, layers: Mapping[str, nn.Module], scheme: LayerScheme) -> int:
    """Return the bits of a group, a shared weight once: as the dearest of the layers that use it needs it."""
    of_weight: dict[int, int] = {}
    for name in group.layers:
        weight = id(layers[name].weight)
        of_weight[weight] = max(of_weight.get(weight, 0), target.stored_bits_with_inputs(layers[name], scheme))
    inputs = scheme.quantized_input
    return sum(of_weight.values()) + (0 if inputs is None else len(group.layers) * inputs.stored_bits)


def _is_matched(candidate: Candidate, others: Iterable[Candidate], fewer: int = -1) -> bool:
    """Tell whether another candidate takes no more with the same blocks, and has at most so many fewer bits."""
    own = candidate.scheme.weight
    return any(
        other.scheme.bits >= own.bits - fewer
        and other.scheme.input == candidate.scheme.input
        and other.stored_bits <= candidate.stored_bits
        and other.scheme.weight.granularity == own.granularity
        for other in others
    )
