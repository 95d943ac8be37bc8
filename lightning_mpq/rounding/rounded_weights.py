"""All candidates as they were rounded, and ranges of inputs, so that profile and quantized model use the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from ..groups.candidates import Candidate
from ..groups.groups import LayerGroup
from ..inputs.calibrate import InputRanges
from ..inputs.operands import OPERAND_SCHEME
from ..inputs.operations import by_operand
from ..inputs.quantizer import InputRange
from ..policy import BitPolicy
from ..quantizers import QuantizedRows
from ..schemes import WeightScheme
from .packed_rows import PackedRows
from .weight_samples import refuse_changed


@dataclass(frozen=True)
class RoundedWeights:
    """Rounded weights by layer and scheme.

    Memory: the bits of each candidate, plus scales; layers that share a weight share its codes.

    Attributes:
        candidates: What may be chosen, in the order of groups.
        rows: (layer, scheme) to packed codes and scales, for every layer of every group and every scheme it is offered.
        errors: (layer, scheme) to the relative error of the layer's output on calibration data,
            tr(E M E^T) / tr(W M W^T); empty if nothing was measured.
        inputs: (layer, scheme of inputs) to the range that was found; and (operand, scheme) for what sums and averages
            read.
        operands: Residual sum or average to the layer with whose inputs it is quantized.
        unseen: Layer to the error of its output on unseen samples over that on calibration data, for schemes with
            second-order rounding; 1 where it is missing.
        samples: Layer to some values of the weight that was rounded, by which another one is known.
    """

    candidates: tuple[Candidate, ...]
    rows: Mapping[tuple[str, WeightScheme], PackedRows]
    errors: Mapping[tuple[str, WeightScheme], float]
    inputs: InputRanges = field(default_factory=dict)
    unseen: Mapping[str, float] = field(default_factory=dict)
    operands: Mapping[str, str] = field(default_factory=dict)
    samples: Mapping[str, Tensor] = field(default_factory=dict)

    def of_layer(self, layer: str, scheme: WeightScheme, rows: slice | Tensor | None = None) -> QuantizedRows:
        """Return one rounded weight, or some of its rows.

        Raises:
            ValueError: If the layer was not rounded to that scheme.
        """
        if (layer, scheme) not in self.rows:
            offered = [str(known) for name, known in self.rows if name == layer]
            raise ValueError(
                f"Layer {layer!r} was not rounded to {scheme!r}; it was rounded to {', '.join(offered) or 'nothing'}. "
                "Pass the candidates of round_candidates(...).candidates on to profile and allocate."
            )
        packed = self.rows[layer, scheme]
        return packed.unpacked() if rows is None else packed.some(rows)

    def of_policy(self, policy: BitPolicy) -> RoundedLayers:
        """Return layer name to rounded weight, for all layers of a policy.

        Each layer's codes are unpacked when they are asked for, and not kept.

        Raises:
            ValueError: If a layer was not rounded to the scheme that the policy gives it.
        """
        return RoundedLayers(self, policy.weights())

    def refuse_changed(self, model: nn.Module, layers: Iterable[str]) -> None:
        """Refuse a model whose layers have other weights than those that were rounded.

        Raises:
            ValueError: If a weight has changed.
        """
        refuse_changed(model, self.samples, layers)

    def operands_of(self, groups: Iterable[LayerGroup]) -> dict[str, list[str]]:
        """Return group name to the sums and averages that are quantized with its inputs, where there are any."""
        found = {
            group.name: [site for site, owner in self.operands.items() if owner in group.layers] for group in groups
        }
        return {group: sites for group, sites in found.items() if sites}

    def operand_ranges(self, layer: str) -> list[tuple[str, InputRange]]:
        """Return the operands of sums and averages that are quantized with the inputs of a layer, and their ranges."""
        names = [name for name, owner in by_operand(self.operands).items() if owner == layer]
        return [(name, self.inputs[name, OPERAND_SCHEME]) for name in names]

    @property
    def stored_bytes(self) -> int:
        """Bytes of codes, scales and zero points in memory."""
        tensors = {id(tensor): tensor for rows in self.rows.values() for tensor in rows.tensors.values()}
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())

    @cached_property
    def fingerprint(self) -> str:
        """What a Taylor model of them depends on, as the SHA-256 of all codes, scales, zero points and ranges."""
        digest = hashlib.sha256("".join(f"{key!r} {found!r}" for key, found in self.inputs.items()).encode())
        digest.update(repr(dict(self.operands)).encode() if self.operands else b"")
        for (layer, scheme), rows in self.rows.items():
            digest.update(f"{layer} {scheme!r}".encode())
            for tensor in rows.tensors.values():
                digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


class RoundedLayers(Mapping[str, QuantizedRows]):
    """Layer name to rounded weight; codes are unpacked when they are asked for."""

    def __init__(self, rounded: RoundedWeights, schemes: Mapping[str, WeightScheme]) -> None:
        self._rounded, self._schemes = rounded, schemes
        for layer, scheme in schemes.items():
            if (layer, scheme) not in rounded.rows:
                rounded.of_layer(layer, scheme)  # says what is missing

    def __getitem__(self, layer: str) -> QuantizedRows:
        return self._rounded.of_layer(layer, self._schemes[layer])

    def refuse_changed(self, model: nn.Module) -> None:
        """See `RoundedWeights.refuse_changed`."""
        self._rounded.refuse_changed(model, self)

    def __iter__(self) -> Iterator[str]:
        return iter(self._schemes)

    def __len__(self) -> int:
        return len(self._schemes)
