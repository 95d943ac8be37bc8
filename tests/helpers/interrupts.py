"""A KeyboardInterrupt at one line of the package, wherever it runs in the calling thread."""

import sys
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from types import FrameType
from typing import Any

from torch import nn

import lightning_mpq

PACKAGE = str(Path(lightning_mpq.__file__).parent)


class InterruptAt:
    """Calls a function, and interrupts it at one of the lines that it runs, each counted where it runs first."""

    def __init__(self, run: Callable[[], Any], wanted: Callable[[FrameType], bool]) -> None:
        """Count the lines of the functions that are wanted."""
        self._run, self._wanted = run, wanted
        self._stop = -1
        self.lines = self.interrupted(-1)[1]

    def interrupted(self, stop: int) -> tuple[str | None, int]:
        """Interrupt at a line of a number, from 1; return where that was, and how many lines were met."""
        seen: set[tuple[str, int]] = set()
        where: list[str] = []

        def local(frame: FrameType, event: str, _: object) -> Any:
            place = (frame.f_code.co_filename, frame.f_lineno)
            if event == "line" and place not in seen:
                seen.add(place)
                if len(seen) == stop:
                    where.append(f"{Path(place[0]).name}:{place[1]}")
                    sys.settrace(None)
                    raise KeyboardInterrupt
            return local

        def trace(frame: FrameType, event: str, _: object) -> Any:
            return local if frame.f_code.co_filename.startswith(PACKAGE) and self._wanted(frame) else None

        sys.settrace(trace)
        try:
            self._run()
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
        return (where[0] if where else None), len(seen)


def hooks_of(model: nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules())


def new_threads(known: Collection[threading.Thread]) -> list[threading.Thread]:
    """Return the threads that are there beside those that are known, once those that end have ended."""
    for thread in threading.enumerate():
        if thread not in known:
            thread.join(0.2)
    return [thread for thread in threading.enumerate() if thread not in known]
