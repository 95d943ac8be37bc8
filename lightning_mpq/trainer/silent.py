"""Loggers and callbacks that may be asked for anything and do nothing, for validation that must leave no trace.

User code asks for them within validation: a logger's folder or experiment, the best score of a checkpoint, whether
there is a progress bar. Each stands in for an object of the Trainer, of whose class it is, with its attributes as they
are; what is set on it is not set on the other.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from types import new_class
from typing import Any, Self, TypeVar

from lightning.pytorch.callbacks import Callback

T = TypeVar("T")
_HOOKS = {name for name in vars(Callback) if name.startswith("on_") or name in ("setup", "teardown")}
_WRITING = {"save", "finalize", "flush", "after_save_checkpoint"}
"""Methods of loggers that write, beside those whose names begin with ``log``."""


class Nothing:
    """Takes whatever is asked of it, and is whatever it returns.

    Example:
        >>> nothing = Nothing()
        >>> nothing.config["a"].update({"b": 1}) is nothing, list(nothing)
        (True, [])
    """

    def __getattr__(self, name: str) -> Self:
        """Return itself for any name but those of Python's own protocols."""
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *args: object, **kwargs: object) -> Self:
        """Return itself."""
        return self

    def __getitem__(self, key: object) -> Self:
        return self

    def __setitem__(self, key: object, value: object) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None: ...

    def __iter__(self) -> Iterator[Any]:
        return iter(())


def silent_logger(logger: T) -> T:
    """Return a stand-in for a logger that writes nothing; its experiment takes everything."""
    names = {name for name in dir(type(logger)) if name.startswith("log") or name in _WRITING}
    muted = {name for name in names if callable(getattr(type(logger), name))}  # and not a property such as log_dir
    return _without(logger, muted, experiment=property(lambda self: Nothing()))


def silent_callback(callback: T) -> T:
    """Return a stand-in for a callback none of whose hooks does anything."""
    return _without(callback, _HOOKS)


def _without(original: T, muted: Collection[str], **attributes: object) -> T:
    """Return an object of a subclass of another's class, with its attributes, some of whose methods do nothing."""
    kind: Any = type(original)
    body = dict.fromkeys(muted, _do_nothing) | attributes
    body |= {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
    made: Any = object.__new__(new_class(kind.__name__, (kind,), exec_body=lambda space: space.update(body)))
    made.__dict__.update({name: value for name, value in vars(original).items() if name not in muted})
    return made


def _do_nothing(*args: object, **kwargs: object) -> None: ...
