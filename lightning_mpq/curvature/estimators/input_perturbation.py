"""The perturbations D = Q(x) - x of inputs: what each scheme adds to what the layers of a group are called on.

A residual sum, or an average, is quantized with the inputs of the last convolution before it. What it reads has one
scheme, so that the sums of a group are one more column, which goes with all of its schemes that store a range.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ...groups.groups import LayerGroup
from ...inputs.calibrate import InputRanges
from ...inputs.changed_operands import operands_changed
from ...inputs.operands import OPERAND_SCHEME
from ...inputs.operations import by_operand
from ...inputs.quantizer import InputRange, quantize_inputs
from ...inputs.sites import inputs_changed
from ...network.named_weights import named_layers
from ...schemes import InputScheme

_IN_CACHE = 2**16
"""Elements that are gone through at a time on a CPU, so that one operation finds in its cache what another wrote."""


class InputPerturbations:
    """What each scheme does to the inputs of all layers of its group; nothing is kept, as inputs differ at each call.

    Attributes:
        columns: Name of a layer, or of an operand of a sum, to the slice of its columns among all.
        count: Number of columns: the schemes of all groups, and then one for each group that has sums.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Sequence[LayerGroup],
        offered: Sequence[tuple[str, InputScheme]],
        ranges: InputRanges,
        sums: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """Look up the layers.

        Args:
            model: The model that the groups were found in.
            groups: The groups, in order.
            offered: (group, scheme) pairs, in the order of groups.
            ranges: (layer or operand, scheme) to the range, where the scheme stores one.
            sums: Group to the sums and averages that are quantized with its inputs.

        Raises:
            ValueError: If a range is missing.
        """
        sites = dict(sums or {})
        self.count = len(offered) + len(sites)
        self._schemes = [scheme for _, scheme in offered] + [OPERAND_SCHEME] * len(sites)
        self._ranges = ranges
        self._model, self._sites = model, [site for own in sites.values() for site in own]
        self.columns: dict[str, slice] = {}
        named = named_layers(model)
        for group in groups:
            own = [index for index, (name, _) in enumerate(offered) if name == group.name]
            if own:
                self.columns |= {layer: slice(own[0], own[-1] + 1) for layer in group.layers}
        self._modules = {layer: named[layer] for layer in self.columns}
        for place, own_sites in enumerate(sites.values(), start=len(offered)):
            self.columns |= by_operand(dict.fromkeys(own_sites, slice(place, place + 1)))
        for layer, columns in self.columns.items():
            for scheme in self._schemes[columns]:
                if scheme.needs_range and (layer, scheme) not in ranges:
                    raise ValueError(
                        f"The range of the inputs of {layer!r} ({scheme}) is not known. Pass rounded=, as "
                        "round_candidates returned it for these candidates."
                    )

    def touched(self, index: int) -> list[str]:
        """Return the names of the layers, or of the operands, that a column concerns."""
        return [name for name, own in self.columns.items() if own.start <= index < own.stop]

    @contextmanager
    def changed(self, change: Callable[[str, Tensor], Tensor]) -> Iterator[None]:
        """Let the model compute with other values for the time of a block.

        Args:
            change: Called with the name and the value of an input or an operand, returns what is read instead.
        """
        with inputs_changed(self._modules, change), operands_changed(self._model, self._sites, change):
            yield

    def rounded(self, layer: str, index: int, x: Tensor) -> Tensor:
        """Return the inputs of a layer under scheme ``index``."""
        scheme, found = self._schemes[index], self._range(layer, index)
        return quantize_inputs(x, scheme, *(found.tensors(x.device) if found is not None else (None, None)))

    def change(self, layer: str, index: int, x: Tensor) -> Tensor:
        """Return ``Q(x) - x`` of detached inputs under scheme ``index``."""
        found, steps = self._steps(layer, index, x)
        return self.rounded(layer, index, x) - x if found is None or steps is None else steps.mul_(found.scale).sub_(x)

    def changes(self, layer: str, x: Tensor, order: Sequence[int] | None = None) -> Tensor:
        """Return ``Q(x) - x`` for each scheme of a layer, contiguous.

        Args:
            layer: Its name.
            x: Its inputs, detached.
            order: In which order the axes of x come after the first one, of schemes; as they are by default.
        """
        own, order = self.columns[layer], range(x.dim()) if order is None else order
        moved = x.permute(tuple(order))
        found = moved.new_empty(own.stop - own.start, *moved.shape)
        for change, index in zip(found, range(own.start, own.stop), strict=True):
            known, steps = self._steps(layer, index, moved, change)
            if known is None or steps is None:
                change.copy_(self.change(layer, index, x).permute(tuple(order)))
            else:
                steps.mul_(known.scale).sub_(moved)
        return found

    def inner_products(self, layer: str, x: Tensor, gradient: Tensor) -> Tensor:
        """Return ``<gradient_m, Q(x_m) - x_m>`` for each row m along dimension 0 and each scheme, [M, B].

        Args:
            layer: Its name.
            x: Its inputs, detached, [M, ...].
            gradient: Shaped like x.
        """
        x, slopes = (x, gradient.flatten(1)) if x.dim() > 1 else (x[:, None], gradient[:, None])
        rows = max(1, _IN_CACHE // max(1, x[:1].numel())) if x.device.type == "cpu" else len(x)
        parts = zip(x.split(rows), slopes.split(rows), strict=True)
        return torch.cat([self._products(layer, own_x, own_slopes) for own_x, own_slopes in parts])

    def _products(self, layer: str, x: Tensor, slopes: Tensor) -> Tensor:
        own = self.columns[layer]
        lost = (self._lost(layer, index, x).flatten(1) for index in range(own.start, own.stop))
        return torch.stack([torch.linalg.vecdot(each, slopes) for each in lost], 1).neg_()

    def _lost(self, layer: str, index: int, x: Tensor) -> Tensor:
        """Return ``x - Q(x)`` but for one rounding less, in fewer operations than `change`."""
        found, steps = self._steps(layer, index, x)
        if found is None or steps is None:
            return x - self.rounded(layer, index, x)
        return torch.sub(x, steps, alpha=found.scale, out=steps)

    def _steps(
        self, layer: str, index: int, x: Tensor, out: Tensor | None = None
    ) -> tuple[InputRange | None, Tensor | None]:
        """Return the range and ``Q(x) / scale`` in ``out``, or a tensor of its own; None where that is not the way."""
        found = self._range(layer, index)
        if found is None or x.dtype not in (torch.float32, torch.float64):
            return found, None
        lowest = -found.zero_point  # in place: faster than torch.fake_quantize_per_tensor_affine
        steps = torch.div(x, found.scale, out=out)
        return found, steps.round_().clamp_(lowest, lowest + 2 ** self._schemes[index].bits - 1)

    def _range(self, layer: str, index: int) -> InputRange | None:
        return self._ranges.get((layer, self._schemes[index]))
