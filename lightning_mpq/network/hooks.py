"""Forward hooks that are gone after a ``with`` block, whatever happens in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from ..tools.clean_up import afterwards

Hook = Callable[..., Any]


@contextmanager
def hooked(
    after: Iterable[tuple[nn.Module, Hook]] = (),
    before: Iterable[tuple[nn.Module, Hook]] = (),
    *,
    with_kwargs: bool = False,
) -> Iterator[None]:
    """Call functions before or after the forward of modules, for the time of a block.

    Args:
        after: Modules, each with a hook as for ``register_forward_hook``.
        before: Modules, each with a hook as for ``register_forward_pre_hook``.
        with_kwargs: Whether hooks get the named arguments too.
    """
    handles: list[RemovableHandle] = []

    def remove() -> None:
        for handle in handles:
            handle.remove()

    with afterwards(remove):
        for module, hook in after:
            handles.append(module.register_forward_hook(hook, with_kwargs=with_kwargs))
        for module, hook in before:
            handles.append(module.register_forward_pre_hook(hook, with_kwargs=with_kwargs))
        yield


def first_argument(args: tuple[Any, ...], kwargs: dict[str, Any], name: str = "input") -> Any:
    """Return what a module was called on: its first argument, given by position or by name; None if there is none."""
    return args[0] if args else kwargs.get(name)
