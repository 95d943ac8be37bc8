"""Which layers are decided together: by the user's patterns, by shared weights, and by what a target ties."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from ..tools.patterns import matching


def partition(
    layers: Mapping[str, nn.Module],
    groups: Mapping[str, str | Sequence[str]],
    ties: Iterable[Sequence[str]],
) -> dict[str, list[str]]:
    """Return group name -> layer names, user groups first applied, then tied weights and tied layers joined."""
    owner: dict[str, str] = {}
    for group, patterns in groups.items():
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            for name in matching(pattern, layers, f"groups[{group!r}]"):
                if owner.setdefault(name, group) != group:
                    raise ValueError(
                        f"Layer {name!r} falls in the groups {owner[name]!r} and {group!r}; give it to one."
                    )
    if clash := [group for group in groups if group in layers and owner.get(group) != group]:
        raise ValueError(f"The group {clash[0]!r} is named like a layer outside of it; choose another name.")
    for names, what in _tied(layers, ties):
        owners = {owner[name] for name in names if name in owner}
        if len(owners) > 1:
            raise ValueError(f"Layers {', '.join(names)} {what} but fall in {sorted(owners)}; put all in one.")
        label = owners.pop() if owners else names[0]
        owner |= dict.fromkeys(names, label)
    members: dict[str, list[str]] = {}
    for name in layers:
        members.setdefault(owner[name], []).append(name)
    return members


def _tied(layers: Mapping[str, nn.Module], ties: Iterable[Sequence[str]]) -> list[tuple[list[str], str]]:
    """Return the sets of layers that must share a decision, each layer in one set, and why they must."""
    by_weight: dict[int, list[str]] = {}
    for name, layer in layers.items():
        by_weight.setdefault(id(layer.weight), []).append(name)
    sets = [(names, "share a weight") for names in by_weight.values()]
    for tie in ties:
        joined = [found for found in sets if not set(tie).isdisjoint(found[0])]
        if len(joined) > 1:
            together = {name for names, _ in joined for name in names}
            sets = [found for found in sets if found not in joined]
            sets.append(
                (
                    [name for name in layers if name in together],
                    "must agree for the target",
                )
            )
    return sets
