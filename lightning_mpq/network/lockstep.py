"""Forward passes over all batches that cross the layers of a model together, each layer after the one before it.

What is decided at a layer from all batches (rounded weights, a shifted bias, BatchNorm statistics) can so act on
everything after it within one pass, where a pass cut short at every layer costs half as many passes as there are
layers. A paused pass is a thread that waits inside of a hook; only one thread ever runs.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from ..tools.clean_up import afterwards
from ..tools.give_back import give_back
from .calibration import Calibration
from .forward import device_of
from .hooks import hooked
from .kept_attributes import KeptAttributes
from .layerwise import Stop, When, call_input
from .random_states import RandomStates
from .route import Route
from .tokens import token_mask


class LockstepForward:
    """One forward pass for each batch, all of which wait at the same layer; use it in a ``with`` block.

    It holds what each pass needs to go on: about the largest activations of the model for all batches at once.
    Nothing carries gradients. Modes of the model are as the caller set them. A pass draws the random numbers that the
    same batch draws in any other such pass, and no other one sees what it keeps on modules. `LayerwiseForward` does
    the same with one pass for each layer, and holds nothing.

    Attributes:
        repeated: Layers that some pass called again when their turn was over.
    """

    def __init__(self, calibration: Calibration, layers: Mapping[str, nn.Module], when: When) -> None:
        """Prepare the passes; none starts before it is asked for its first stop.

        Args:
            calibration: The model and its batches.
            layers: Name to the modules at which passes stop, in the order in which they are asked for.
            when: Whether to stop before a layer runs or after it.
        """
        self._layers, self._when = layers, when
        self._last = next(reversed([*layers]), "")
        self._gate = _Gate()
        self._over: set[str] = set()
        self.repeated: set[str] = set()
        self._passes = [
            _Pass(partial(calibration.forward, batch, number), calibration.model, number, token_mask(batch))
            for number, batch in enumerate(calibration.filled(), start=1)
        ]

    def __enter__(self) -> LockstepForward:
        """Register the hooks at which passes stop."""
        self._block = _stopping(self._layers, self._when, self._gate, self._passes)
        self._block.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End all passes where they are, and remove the hooks."""
        self._block.__exit__(kind, error, trace)

    def at(self, layer: str) -> Iterator[Stop | None]:
        """Let one pass after the other go on to a layer, and yield where it stops; the next in the order of calls.

        None for a pass that ends, or comes to a later layer, without a call of it; there it waits for that one's turn.
        """
        self._over.add(layer)
        for each in self._passes:
            yield self._advance(each, layer)
            if layer == self._last:  # nobody asks for more: what is behind it, such as logits, need not be held
                each.cancel()
                each.join()
        give_back()  # each thread's heap keeps what its pass has freed, beside what all passes hold

    def _advance(self, each: _Pass, layer: str) -> Stop | None:
        """Let a pass go on from calls of layers whose turn is over."""
        while (waiting := each.stop) is None or waiting.layer in self._over:
            if waiting is not None and waiting.layer == layer and not each.is_seen:
                each.is_seen = True
                return waiting
            if waiting is not None and not each.is_seen:
                self.repeated.add(waiting.layer)
            self._gate.running = each
            with afterwards(self._gate.leave):
                if each.advance() is None:
                    return None
        return None


class _Gate:
    """Where hooks let the running pass wait; calls of the model by anybody else go through."""

    def __init__(self) -> None:
        self.running: _Pass | None = None
        self.closed = False

    def leave(self) -> None:
        self.running = None

    def wait(self, name: str, module: nn.Module, args: Any, kwargs: Any, output: Any = None) -> None:
        if self.closed:
            raise _Cancelled  # of a pass that was running when all were ended
        if self.running is not None:
            mask, route = self.running.mask, self.running.route_so_far
            self.running.wait(Stop(name, call_input(module, args, kwargs, mask), output, route, mask))

    def note(self, module: nn.Module, args: Any, kwargs: Any = None) -> None:
        if self.running is not None:
            self.running.note_route()


@contextmanager
def _stopping(layers: Mapping[str, nn.Module], when: When, gate: _Gate, passes: Sequence[_Pass]) -> Iterator[None]:
    """Let passes stop at layers; at the end let all go first, so that none waits for ever, whatever happens meanwhile.

    It knows nothing of a `LockstepForward`, with which it is closed if an interrupt prevents that before.
    """

    def end() -> None:
        gate.closed = True
        for each in passes:
            each.cancel()
        for each in passes:
            each.join()

    hooks = [(layer, partial(gate.wait, name)) for name, layer in layers.items()]
    notes = hooked(before=[(layer, gate.note) for layer in layers.values()])
    with notes, hooked(**{when: hooks}, with_kwargs=True), afterwards(end):
        yield


class _Cancelled(BaseException):
    """Ends a pass that is not needed any more; no ``except Exception`` in a model stops it."""


class _Pass:
    """One forward pass in a thread of its own, which runs only while `advance` waits for it."""

    def __init__(self, run: Callable[[], object], model: nn.Module, number: int, mask: Tensor | None) -> None:
        self.stop: Stop | None = None
        self.mask = mask
        self.is_seen = False
        self.route_so_far = b""
        self._route = Route()
        self._model, self._random = model, RandomStates.seeded(model, number)
        self._kept = KeptAttributes(model)
        self._ended = False
        self._run = run
        self._device = device_of(model)
        self._error: BaseException | None = None
        self._cancelled = False
        self._go, self._halted = threading.Semaphore(0), threading.Semaphore(0)
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=lambda: context.run(self._main), daemon=True)

    def advance(self) -> Stop | None:
        """Run to the next stop and return it, or None at the end; what the pass raises is raised here."""
        self.stop, self.is_seen = None, False
        if self._ended:
            return None
        outside = RandomStates.now(self._model)

        def leave() -> None:
            self._random = RandomStates.now(self._model)

        with afterwards(outside.set), afterwards(leave), self._kept.in_place(stays=lambda: self._ended):
            self._random.set()
            if self._thread.ident is None:
                self._thread.start()
            else:
                self._go.release()
            self._halted.acquire()
        if self._error is not None:
            raise self._error
        return self.stop

    def note_route(self) -> None:
        """Called inside of the pass: remember what it has done up to here."""
        self.route_so_far = self._route.so_far()

    def wait(self, stop: Stop) -> None:
        """Called inside of the pass: hand over a stop, and come back when the pass may go on."""
        self.stop = stop
        self._halted.release()
        self._go.acquire()
        if self._cancelled:
            raise _Cancelled

    def cancel(self) -> None:
        """Let the pass end where it waits, or will wait."""
        self._cancelled = True
        self._go.release()
        self.stop = None

    def join(self) -> None:
        """Come back when the pass has ended."""
        if self._thread.is_alive():
            self._thread.join()

    def _main(self) -> None:
        # Whether gradients are recorded, and which CUDA device is current, belongs to each thread.
        on_device = torch.cuda.device(self._device) if self._device.type == "cuda" else nullcontext()
        try:
            with torch.no_grad(), on_device, self._route:
                self._run()
        except _Cancelled:
            pass
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
            self._error = error
        self.stop, self._ended = None, True
        self._halted.release()
