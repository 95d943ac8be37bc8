"""What a kernel keeps of weights that are not packed yet: one weight of each shape and scheme is prepared to see."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from ..groups.candidates import Candidate
from ..groups.groups import LayerGroup
from ..network.layer_kinds import weight_rows
from ..quantizers import quantize_rows
from . import PackedLinear, pack_layer
from .kernels import PLAIN, prepared_for


def kernel_bytes(
    layers: Mapping[str, nn.Module],
    groups: Iterable[LayerGroup],
    candidates: Sequence[Candidate],
    kernel: str,
) -> dict[tuple[str, str], float]:
    """Return what a kernel keeps of each candidate's weights beside the stored ones.

    Args:
        layers: Name to float layer.
        groups: The groups of these layers.
        candidates: What may be chosen.
        kernel: A kernel's name, ``"auto"`` or ``"plain"``.

    Returns:
        (group, scheme) to bytes; nothing of those that the kernel does not take.
    """
    if kernel == PLAIN:
        return {}
    by_name = {group.name: group for group in groups}
    of_shape: dict[tuple[Any, ...], float | None] = {}

    def kept(layer: nn.Module, candidate: Candidate) -> float | None:
        key = (weight_rows(layer).shape, str(candidate.scheme))
        if key not in of_shape:
            plain = replace(candidate.scheme.weight, clip="absmax", rounding="nearest")
            twin = pack_layer(layer, quantize_rows(weight_rows(layer).detach(), plain))
            of_shape[key] = None
            if isinstance(twin, PackedLinear):
                prepared = prepared_for(twin.matrix(), kernel, twin.weight_dtype, quiet=True).prepared
                of_shape[key] = None if prepared is None else float(prepared.nbytes)
        return of_shape[key]

    found: dict[tuple[str, str], float] = {}
    for candidate in candidates:
        distinct = {id(layers[name].weight): layers[name] for name in by_name[candidate.group].layers}
        bytes_of = [kept(layer, candidate) for layer in distinct.values()]
        if all(value is not None for value in bytes_of):
            found[candidate.group, str(candidate.scheme)] = sum(value for value in bytes_of if value is not None)
    return found
