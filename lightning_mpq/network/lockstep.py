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
from torch import nn

from ..tools.clean_up import afterwards
from .calibration import Calibration
from .forward import device_of
from .hooks import hooked
from .layerwise import Stop, When, call_input


class LockstepForward:
    """One forward pass for each batch, all of which wait at the same layer; use it in a ``with`` block.

    It holds what each pass needs to go on: about the largest activations of the model for all batches at once.
    Nothing carries gradients. Modes of the model are as the caller set them. `LayerwiseForward` does the same with one
    pass for each layer, and holds nothing.
    """

    def __init__(self, calibration: Calibration, layers: Mapping[str, nn.Module], when: When) -> None:
        """Prepare the passes; none starts before it is asked for its first stop.

        Args:
            calibration: The model and its batches.
            layers: Name to the modules at which passes stop, each called at most once in a pass.
            when: Whether to stop before a layer runs or after it.
        """
        self._layers, self._when = layers, when
        self._gate = _Gate()
        self._passes = [
            _Pass(partial(calibration.forward, batch, number), calibration.model)
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

    def at(self, layer: str) -> Iterator[Stop]:
        """Let one pass after the other go on to a layer, and yield where it stops; the next in the order of calls.

        Raises:
            ValueError: If a pass ends or comes to another layer first: then the model does not do the same with all
                batches.
        """
        for number in range(len(self._passes)):
            yield self._advance(number, layer)

    def _advance(self, number: int, layer: str) -> Stop:
        self._gate.running = self._passes[number]
        with afterwards(self._gate.leave):
            stop = self._passes[number].advance()
        if stop is None or stop.layer != layer:
            instead = "ends without a call of it" if stop is None else f"calls {stop.layer!r} first"
            raise ValueError(
                f"Layer {layer!r} comes next on the first batch, but batch {number + 1} {instead}; leave layers that "
                "are not called on every batch, or not in the same order, in float."
            )
        return stop


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
            self.running.wait(Stop(name, call_input(args, kwargs), output))


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
    with hooked(**{when: hooks}, with_kwargs=True), afterwards(end):
        yield


class _Cancelled(BaseException):
    """Ends a pass that is not needed any more; no ``except Exception`` in a model stops it."""


class _Pass:
    """One forward pass in a thread of its own, which runs only while `advance` waits for it."""

    def __init__(self, run: Callable[[], object], model: nn.Module) -> None:
        self.stop: Stop | None = None
        self._run = run
        self._device = device_of(model)
        self._error: BaseException | None = None
        self._cancelled = False
        self._go, self._halted = threading.Semaphore(0), threading.Semaphore(0)
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=lambda: context.run(self._main), daemon=True)

    def advance(self) -> Stop | None:
        """Run to the next stop and return it, or None at the end; what the pass raises is raised here."""
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._go.release()
        self._halted.acquire()
        if self._error is not None:
            raise self._error
        return self.stop

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
            with torch.no_grad(), on_device:
                self._run()
        except _Cancelled:
            pass
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
            self._error = error
        self.stop = None
        self._halted.release()
