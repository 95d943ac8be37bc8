"""Forward passes over all batches up to one layer after the other: the plain way, one pass for each layer and batch.

What is decided at a layer from all batches (a rounded weight, a shifted bias) acts on the passes that come later.
`LockstepForward` needs one pass in all, and is compared with this one in tests.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from .calibration import Calibration
from .hooks import first_argument, hooked
from .layer_kinds import kind_of
from .own_operation import operand
from .random_states import RandomStates
from .route import Route
from .tokens import real_tokens, token_mask

When = Literal["before", "after"]


class Stop(NamedTuple):
    """Where a pass waits.

    Attributes:
        layer: Name of the layer.
        inputs: Its first argument; of a layer that wraps an operation, that of the operation. Tokens that the batch's
            attention mask hides are left out.
        output: What it returned; None if it has not run yet.
        route: What the pass has done with its data before this call, see `Route`.
        mask: Which tokens of the batch count, as `token_mask` returns it.
    """

    layer: str
    inputs: Tensor
    output: Any
    route: bytes = b""
    mask: Tensor | None = None


class LayerwiseForward:
    """Passes that end at a layer; use it in a ``with`` block, as `LockstepForward`."""

    def __init__(self, calibration: Calibration, layers: Mapping[str, nn.Module], when: When) -> None:
        """See `LockstepForward`."""
        self._calibration, self._layers, self._when = calibration, layers, when
        self.repeated: set[str] = set()

    def __enter__(self) -> Self:
        """Hold nothing."""
        return self

    def __exit__(self, *error: object) -> None:
        """Release nothing."""

    def at(self, layer: str) -> Iterator[Stop | None]:
        """Let one batch after the other pass up to a layer, and yield where it stops; None if it never comes there."""
        for number, batch in enumerate(self._calibration.filled(), start=1):
            yield self._pass(layer, batch, number)

    def _pass(self, layer: str, batch: Any, number: int) -> Stop | None:
        route, model = Route(), self._calibration.model
        before: list[bytes] = []
        module, stop = self._layers[layer], partial(_stop, layer, before, token_mask(batch))
        hooks: Any = {"before": [(module, lambda *args: before.append(route.so_far()))], "after": []}
        hooks[self._when].append((module, stop))
        outside = RandomStates.now(model)
        try:
            RandomStates.seeded(model, number).set()
            with hooked(**hooks, with_kwargs=True), torch.no_grad(), route:
                self._calibration.forward(batch, number)
        except _Stopped as stopped:
            return stopped.stop
        finally:
            outside.set()
        return None


def order_of_calls(calibration: Calibration, batch: Any, layers: Mapping[str, nn.Module]) -> list[str]:
    """Return the layers in the order in which one forward pass calls them, repeatedly where it does so."""
    calls: list[str] = []

    def note(name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        calls.append(name)

    with hooked(before=[(module, partial(note, name)) for name, module in layers.items()]), torch.no_grad():
        calibration.forward(batch)
    return calls


def call_input(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], mask: Tensor | None = None
) -> Tensor:
    """Return what a layer's weight is multiplied with in a call, whatever the name of its argument."""
    found = first_argument(args, dict(kwargs), next(iter(kwargs), ""))
    assert isinstance(found, Tensor)
    with _disable_current_modes():  # looking is no part of the pass, whose route may be noted
        inputs = operand(module, args, dict(kwargs), found.detach())
        kind = kind_of(module)
        return real_tokens(inputs, mask) if kind is not None and kind.operation == "linear" else inputs


class _Stopped(BaseException):
    """Ends a pass at its layer; no ``except Exception`` in a model stops it."""

    def __init__(self, stop: Stop) -> None:
        super().__init__()
        self.stop = stop


def _stop(
    name: str,
    route: list[bytes],
    mask: Tensor | None,
    module: nn.Module,
    args: Any,
    kwargs: Any,
    output: Any = None,
) -> None:
    raise _Stopped(Stop(name, call_input(module, args, kwargs, mask), output, route[-1], mask))
