"""The perturbations D = Q(x) - x of inputs: what each scheme adds to what the layers of a group are called on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...groups.groups import LayerGroup
from ...inputs.calibrate import InputRanges
from ...inputs.quantizer import InputRange, quantize_inputs
from ...network.named_weights import named_layers
from ...schemes import InputScheme


class InputPerturbations:
    """What each scheme does to the inputs of all layers of its group; nothing is kept, as inputs differ at each call.

    Attributes:
        modules: Name to layer, for all layers whose inputs are offered a scheme.
        columns: Layer name to the slice of schemes of its group, among all.
        count: Number of schemes of all groups.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Sequence[LayerGroup],
        offered: Sequence[tuple[str, InputScheme]],
        ranges: InputRanges,
    ) -> None:
        """Look up the layers.

        Args:
            model: The model that the groups were found in.
            groups: The groups, in order.
            offered: (group, scheme) pairs, in the order of groups.
            ranges: (layer, scheme) to the range of its inputs, where the scheme stores one.

        Raises:
            ValueError: If a range is missing.
        """
        self.count = len(offered)
        self._schemes = [scheme for _, scheme in offered]
        self._ranges = ranges
        self.columns: dict[str, slice] = {}
        named = named_layers(model)
        for group in groups:
            own = [index for index, (name, _) in enumerate(offered) if name == group.name]
            if own:
                self.columns |= {layer: slice(own[0], own[-1] + 1) for layer in group.layers}
        self.modules = {layer: named[layer] for layer in self.columns}
        for layer, columns in self.columns.items():
            for scheme in self._schemes[columns]:
                if scheme.needs_range and (layer, scheme) not in ranges:
                    raise ValueError(
                        f"The range of the inputs of {layer!r} ({scheme}) is not known. Pass rounded=, as "
                        "round_candidates returned it for these candidates."
                    )

    def touched(self, index: int) -> dict[str, nn.Module]:
        """Return name to layer, for the layers that a scheme concerns."""
        return {layer: self.modules[layer] for layer, own in self.columns.items() if own.start <= index < own.stop}

    def rounded(self, layer: str, index: int, x: Tensor) -> Tensor:
        """Return the inputs of a layer under scheme ``index``."""
        scheme, found = self._schemes[index], self._range(layer, index)
        return quantize_inputs(x, scheme, *(found.tensors(x.device) if found is not None else (None, None)))

    def change(self, layer: str, index: int, x: Tensor) -> Tensor:
        """Return ``Q(x) - x`` of detached inputs under scheme ``index``."""
        found = self._range(layer, index)
        if found is None or x.dtype not in (torch.float32, torch.float64):
            return self.rounded(layer, index, x) - x
        lowest = -found.zero_point  # in place: faster than torch.fake_quantize_per_tensor_affine
        steps = x.div(found.scale).round_().clamp_(lowest, lowest + 2 ** self._schemes[index].bits - 1)
        return steps.mul_(found.scale).sub_(x)

    def changes(self, layer: str, x: Tensor) -> Tensor:
        """Return ``Q(x) - x`` for each scheme of a layer, ``[B, *x]``; x is detached."""
        own = self.columns[layer]
        return torch.stack([self.change(layer, index, x) for index in range(own.start, own.stop)])

    def inner_products(self, layer: str, x: Tensor, gradient: Tensor) -> Tensor:
        """Return ``<gradient_m, Q(x_m) - x_m>`` for each row m along dimension 0 and each scheme, [M, B].

        Args:
            layer: Its name.
            x: Its inputs, detached, [M, ...].
            gradient: Shaped like x.
        """
        own = self.columns[layer]
        x, slopes = (x, gradient.flatten(1)) if x.dim() > 1 else (x[:, None], gradient[:, None])
        changes = (self.change(layer, index, x) for index in range(own.start, own.stop))
        return torch.stack([torch.linalg.vecdot(change.flatten(1), slopes) for change in changes], 1)

    def _range(self, layer: str, index: int) -> InputRange | None:
        return self._ranges.get((layer, self._schemes[index]))
