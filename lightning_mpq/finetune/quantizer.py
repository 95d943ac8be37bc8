"""What turns one weight into its fake-quantized one: grid, learned scales, and the weights that give wanted codes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ..errors import NonFiniteError
from ..grids.registry import grid_named
from ..network.layer_kinds import kind_of
from ..quantizers import QuantizedRows
from ..quantizers.nearest import finite_rows, sum_per_scale
from ..quantizers.quantized_rows import encode, placed
from ..tools.finite import all_finite
from .straight_through import FakeQuantizedRows

_SCALE_RANGE = 4.0
"""Factor by which a scale may leave its first value: one that a large step takes to zero would turn its row to zeros,
which the BatchNorm after it divides by."""


def relative_to(first: Tensor, relative: Tensor, stored: torch.dtype) -> Tensor:
    """Return learned scales as they are stored, without a gradient: within a factor of 4 of the first ones.

    Args:
        first: Scales at the start, float32 or wider.
        relative: What they are multiplied with.
        stored: Type that scales are stored in.
    """
    limits = torch.finfo(stored)
    # Half precision holds a few scales below its least normal number; those must not grow before they learn.
    least = first.clamp(max=limits.tiny)
    learned = first * relative.detach().clamp(1 / _SCALE_RANGE, _SCALE_RANGE)
    return torch.where(first == 0, first, torch.maximum(learned, least).clamp(max=limits.max)).to(stored)


class WeightQuantizer:
    """The grid of one weight, shared by layers that share the weight.

    A scale is ``first_scale * relative_scale``, rounded to the type that scales are stored in. What an optimizer
    holds is ``relative_scale``, 1 at the start, with the gradient ``g dL/ds / first_scale``, where
    ``g = 1 / sqrt(N Q)`` is the gradient scale of LSQ for N weights and a largest level Q (arXiv:1902.08153,
    section 2.2). A step of gradient descent so moves s itself by LSQ's own ``-lr g dL/ds``, and one of Adam by about
    ``lr * s``, whatever the size of the weights. Zero points stay as they were.

    Attributes:
        kind: How the weight is cut into rows.
        groups: Convolution groups.
        scheme: Bits, granularity and grid.
        first_scale: The candidate's scales, float32 or wider, shaped as in `QuantizedRows`; under a zero all weights
            are zero and stay so.
        relative_scale: Learned; same shape.
        zero_point: uint8, same shape; None unless the grid is asymmetric.
        margin: How far beyond the outermost levels gradients pass, in steps.
    """

    def __init__(
        self, layer: nn.Module, start: QuantizedRows, *, learn_scale: bool = True, margin: float = 0.0
    ) -> None:
        """Begin with the grid of a rounded weight.

        Args:
            layer: A layer with one ``weight``, or a `ParameterView`: knows how the weight is cut into rows.
            start: The rounded weight.
            learn_scale: Whether the scales learn, if the grid lets them.
            margin: See above.
        """
        kind = kind_of(layer)
        assert kind is not None
        assert isinstance(layer.weight, Tensor)
        self.kind = kind
        self.groups = int(getattr(layer, "groups", 1))
        self.scheme = start.scheme
        wide = torch.promote_types(layer.weight.dtype, torch.float32)
        self.first_scale = start.scale.detach().to(wide, copy=True)
        learn_scale = learn_scale and grid_named(self.scheme.grid).learnable_scale
        self.relative_scale = nn.Parameter(torch.ones_like(self.first_scale), requires_grad=learn_scale)
        self.zero_point = None if start.zero_point is None else start.zero_point.detach().clone()
        self.margin = margin
        counts = sum_per_scale(torch.ones(start.codes.shape, dtype=wide, device=start.scale.device), self.scheme)
        self._gradient_scale = (counts * grid_named(self.scheme.grid).largest_level(self.scheme.bits)).rsqrt()

    def __call__(self, weight: Tensor) -> Tensor:
        """Return the fake-quantized weight in the layout and type of ``weight``."""
        rounded = FakeQuantizedRows.apply(
            self.rows(weight),
            self.relative_scale,
            self.scale(),
            self._slope(),
            self.zero_point,
            self.scheme,
            self.margin,
        )
        assert isinstance(rounded, Tensor)
        return self.kind.from_rows(rounded, weight.shape, self.groups)

    def rows(self, weight: Tensor) -> Tensor:
        """Return a weight as [R, C], laid out in memory like the codes of a packed layer."""
        return self.kind.to_rows(weight, self.groups).contiguous()

    def write_rows(self, weight: Tensor, rows: Tensor) -> None:
        """Copy [R, C] into a weight, in place."""
        with torch.no_grad():
            weight.copy_(self.kind.from_rows(rows, weight.shape, self.groups))

    def scale(self) -> Tensor:
        """Return the scales as a packed layer would store them, without a gradient."""
        return relative_to(self.first_scale, self.relative_scale, getattr(torch, self.scheme.scale_dtype))

    def quantized(self, weight: Tensor) -> QuantizedRows:
        """Return codes and scales of a weight as the next forward pass would use them.

        Raises:
            NonFiniteError: If a weight or a scale is NaN or infinite.
        """
        scale = self.scale()
        if not all_finite(scale):
            raise NonFiniteError(f"{int((~torch.isfinite(scale)).sum())} learned scales are NaN or infinite.")
        codes = encode(finite_rows(self.rows(weight)), scale, self.zero_point, self.scheme)
        return QuantizedRows(codes, scale, self.zero_point, self.scheme)

    def weights_with_codes(self, rows: Tensor, codes: Tensor, inset: float) -> Tensor:
        """Return the weights nearest to ``rows`` that are rounded to the given codes.

        Args:
            rows: [R, C], the float weights.
            codes: uint8 [R, C].
            inset: How far from the ends of its cell a weight must lie, in steps, 0 < inset <= 1/2; with 1/2 it
                lies on the level.
        """
        wide = self.first_scale.dtype
        levels = placed(self.scale(), self.zero_point, self.scheme, rows.shape[1], wide)
        low, high = levels.cell(codes, 0.5 - inset, self.margin)
        step = levels.step
        moved = torch.minimum(torch.maximum(rows.to(wide), step * low), step * high).to(rows.dtype)
        moved = torch.where(step == 0, rows, moved)
        wrong = levels.nearest(moved.to(wide)) != codes
        return torch.where(wrong, levels.values(codes.to(wide)).to(rows.dtype), moved)

    def move(self, function: Callable[[Tensor], Tensor]) -> None:
        """Follow a module to another device; types never change. The learned scales stay the same Parameter."""
        device = function(torch.empty(0, device=self.first_scale.device)).device
        self.first_scale = self.first_scale.to(device)
        self._gradient_scale = self._gradient_scale.to(device)
        self.zero_point = None if self.zero_point is None else self.zero_point.to(device)
        self.relative_scale.data = self.relative_scale.data.to(device)
        if self.relative_scale.grad is not None:
            self.relative_scale.grad.data = self.relative_scale.grad.data.to(device)

    def state(self) -> dict[str, Tensor]:
        """Return what `load_state` needs, copied."""
        state = {"first_scale": self.first_scale, "relative_scale": self.relative_scale.detach()}
        if self.zero_point is not None:
            state["zero_point"] = self.zero_point
        return {name: value.clone() for name, value in state.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take what `state` returned; the learned scales stay the same Parameter.

        Raises:
            ValueError: If the scales are of another shape.
        """
        if state["relative_scale"].shape != self.relative_scale.shape:
            raise ValueError(
                f"Expected scales of shape {list(self.relative_scale.shape)}, got "
                f"{list(state['relative_scale'].shape)}."
            )
        with torch.no_grad():
            self.first_scale.copy_(state["first_scale"])
            self.relative_scale.copy_(state["relative_scale"])
            if self.zero_point is not None:
                self.zero_point.copy_(state["zero_point"])

    def _slope(self) -> Tensor:
        """Return what turns the gradient of a scale into that of the relative scale."""
        ones = torch.ones_like(self.first_scale)
        return torch.where(self.first_scale == 0, ones, self._gradient_scale / self.first_scale)
