"""Weights that jump to and fro between two levels: damped by a loss, or frozen when they do it too often.

Nagel et al., Overcoming Oscillations in Quantization-Aware Training, ICML 2022, arXiv:2203.11086.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from .fake_quantization import FakeQuantization


def damping_loss(handle: FakeQuantization) -> Tensor:
    """Return the sum over all weights of their squared distance to the level they are rounded to (section 4.2).

    Weights beyond the outermost level count as lying on it. Levels and scales take no gradient.
    """
    losses = [quantizer.squared_rounding_error(weight) for weight, quantizer in handle.weights.values()]
    return torch.stack(losses).sum()


@dataclass
class _History:
    """What is known of each weight of one layer; all [R, C].

    Attributes:
        codes: uint8, at the last step.
        direction: int8, sign of the last change of the code; 0 before the first.
        frequency: Running mean of "the code went back where it came from".
        mean: Running mean of the code.
        frozen: bool, whether the code is held.
        held: uint8, the code that is held.
    """

    codes: Tensor
    direction: Tensor
    frequency: Tensor
    mean: Tensor
    frozen: Tensor
    held: Tensor

    @classmethod
    def of(cls, codes: Tensor) -> _History:
        zeros = torch.zeros(codes.shape, device=codes.device)
        return cls(codes, zeros.to(torch.int8), zeros, codes.float(), zeros.bool(), torch.zeros_like(codes))


class OscillationFreezer:
    """Holds weights at a level once their code has gone to and fro too often (section 4.3, algorithm 1).

    Args:
        handle: The fake-quantized layers.
        threshold: Running frequency of oscillation above which a weight is held; at 0.5 a weight flips at every other
            step. May be lowered while training goes on.
        momentum: Weight of the last step in running means.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self, handle: FakeQuantization, threshold: float = 0.02, momentum: float = 0.01) -> None:
        if not 0 < threshold < 1:
            raise ValueError(f"threshold must be in (0, 1), got {threshold!r}.")
        if not 0 < momentum <= 1:
            raise ValueError(f"momentum must be in (0, 1], got {momentum!r}.")
        self.handle = handle
        self.threshold = threshold
        self.momentum = momentum
        self._history = {
            name: _History.of(quantizer.quantized(weight).codes) for name, (weight, quantizer) in handle.weights.items()
        }

    @torch.no_grad()
    def step(self, names: Collection[str] | None = None) -> None:
        """Watch one optimizer step, and put held weights back to their levels; call it after each.

        Args:
            names: The weights that it was a step of; by default all.
        """
        for name, (weight, quantizer) in self.handle.weights.items():
            if names is not None and name not in names:
                continue
            history = self._history[name]
            codes = quantizer.quantized(weight).codes
            change = torch.sign(codes.to(torch.int16) - history.codes.to(torch.int16)).to(torch.int8)
            oscillates = (change * history.direction < 0).float()
            history.frequency.lerp_(oscillates, self.momentum)
            history.mean.lerp_(codes.float(), self.momentum)
            history.direction = torch.where(change == 0, history.direction, change)
            newly = (history.frequency > self.threshold) & ~history.frozen
            history.held = torch.where(newly, history.mean.round().to(torch.uint8), history.held)
            history.frozen |= newly
            if history.frozen.any():
                levels = quantizer.levels(history.held, weight.dtype)
                quantizer.write_rows(weight, torch.where(history.frozen, levels, quantizer.rows(weight)))
            history.codes = torch.where(history.frozen, history.held, codes)

    def forget(self, names: Iterable[str]) -> None:
        """Begin anew with some weights, whose grid has changed."""
        for name in names:
            weight, quantizer = self.handle.weights[name]
            self._history[name] = _History.of(quantizer.quantized(weight).codes)

    @property
    def frozen_share(self) -> float:
        """Share of all weights that are held."""
        counts = [(int(history.frozen.sum()), history.frozen.numel()) for history in self._history.values()]
        return sum(held for held, _ in counts) / sum(every for _, every in counts)

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Return what was seen so far, by layer."""
        return {
            name: {each.name: getattr(history, each.name).clone() for each in fields(history)}
            for name, history in self._history.items()
        }

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take what `state_dict` returned.

        Raises:
            ValueError: If it is of other layers.
        """
        if set(state) != set(self._history):
            other = sorted(set(state) ^ set(self._history))
            raise ValueError(f"The saved oscillations and the model differ in the layer {other[0]!r}.")
        for name, history in self._history.items():
            device = history.codes.device
            self._history[name] = _History(**{key: value.to(device) for key, value in state[name].items()})
