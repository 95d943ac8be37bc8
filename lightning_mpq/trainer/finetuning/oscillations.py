"""Weights that go to and fro between two levels are held, behind each step of the optimizers that train them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from ...finetune import FakeQuantization, OscillationFreezer

Seen = Mapping[str, Mapping[str, Tensor]]


class OscillationWatch:
    """Lets an `OscillationFreezer` see every step of the optimizers while a model is fine-tuned.

    Attributes:
        threshold: As for `OscillationFreezer`; 0 to hold nothing.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self._freezer: OscillationFreezer | None = None
        self._seen: Seen | None = None
        self._hooks: list[RemovableHandle] = []

    def load(self, seen: Seen | None) -> None:
        """Take what a checkpoint kept, for the layers to come."""
        self._seen = seen

    def start(self, handle: FakeQuantization, optimizers: Sequence[Optimizer]) -> None:
        """Watch each optimizer for the weights that it holds."""
        if not self.threshold:
            return
        self._freezer = OscillationFreezer(handle, self.threshold)
        if self._seen is not None:
            self._freezer.load_state_dict(self._seen)
        for optimizer in optimizers:
            held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
            names = [name for name, (weight, _) in handle.weights.items() if id(weight) in held]
            self._hooks.append(optimizer.register_step_post_hook(partial(self._stepped, names)))

    def forget(self, names: Iterable[str]) -> None:
        """Begin anew with weights that have got another grid."""
        if self._freezer is not None:
            self._freezer.forget(names)

    def stop(self) -> None:
        """Hold nothing any more; what a checkpoint needs is kept."""
        self._seen = self.state()
        self._freezer = None
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def state(self) -> Seen | None:
        """Return what was seen so far; None if nothing is watched."""
        return self._seen if self._freezer is None else self._freezer.state_dict()

    def _stepped(self, names: Sequence[str], *unused: Any) -> None:
        if self._freezer is not None:
            self._freezer.step(names)
