"""Variables whose gradients are scores of inputs, from the same backward pass as those of weights.

A layer that is called on x computes with ``x + sum_b p_b (Q_b(x) - x)`` at p = 0, that is with x; the derivative of
anything by p_b is ``<d anything / d x, Q_b(x) - x>``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .input_perturbation import InputPerturbations


class InputProbes:
    """The variables p of all schemes of inputs.

    Attributes:
        leaves: One vector for each group whose inputs are offered schemes, and each that has sums; none without.
    """

    def __init__(self, inputs: InputPerturbations | None, device: torch.device) -> None:
        """Make fresh variables.

        Args:
            inputs: The perturbations; None if all inputs stay in float.
            device: Where scores are added up.
        """
        self._inputs = inputs
        self._count = 0 if inputs is None else inputs.count
        self._wide = torch.float32 if device.type == "mps" else torch.float64
        slices = [] if inputs is None else list(inputs.columns.values())
        self._places = dict.fromkeys((own.start, own.stop) for own in slices)
        self.leaves = [
            torch.zeros(stop - start, dtype=self._wide, device=device, requires_grad=True)
            for start, stop in self._places
        ]

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Let the layers depend on the variables, for the time of a forward pass."""
        if self._inputs is None:
            yield
            return
        inputs, of_group = self._inputs, dict(zip(self._places, self.leaves, strict=True))

        def probe(layer: str, x: Tensor) -> Tensor:
            own = inputs.columns[layer]
            return _Probe.apply(x, of_group[own.start, own.stop], _Scores(inputs, layer, self._wide))

        with inputs.changed(probe):
            yield

    def scores(self, gradients: Sequence[Sequence[Tensor | None]]) -> Tensor:
        """Return M gradients by the leaves as the scores of all schemes, [M, count]."""
        device = self.leaves[0].device if self.leaves else None
        found = torch.zeros(len(gradients), self._count, dtype=self._wide, device=device)
        for row, parts in enumerate(gradients):
            for (start, stop), part in zip(self._places, parts, strict=True):
                if part is not None:
                    found[row, start:stop] = part
        return found


@dataclass
class _Scores:
    """Scores of one call of a layer; what its schemes change is kept from the first backward pass to the others.

    It is kept in the order in which gradients lie in memory, so that these need not be copied in each pass.
    """

    inputs: InputPerturbations
    layer: str
    dtype: torch.dtype
    changes: Tensor | None = None
    order: tuple[int, ...] = ()

    def __call__(self, x: Tensor, gradient: Tensor) -> Tensor:
        if self.changes is None:
            self.order = tuple(sorted(range(gradient.dim()), key=gradient.stride, reverse=True))
            self.changes = self.inputs.changes(self.layer, x, self.order).flatten(1)
        return (self.changes @ gradient.permute(self.order).reshape(-1)).to(self.dtype)


class _Probe(torch.autograd.Function):
    """Returns x; the gradient of the leaf is what ``score(x, gradient of x)`` returns."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, leaf: Tensor, score: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(x)
        ctx.score = score
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        (x,) = ctx.saved_tensors
        return gradient, ctx.score(x.detach(), gradient), None
