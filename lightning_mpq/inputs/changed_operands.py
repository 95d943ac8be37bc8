"""What sums and averages of a float model read, changed for the time of a block."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

from torch import Tensor, nn

from ..tools.clean_up import afterwards
from .operations import Operations, Site


@contextmanager
def operands_changed(model: nn.Module, sites: Iterable[str], change: Callable[[str, Tensor], Tensor]) -> Iterator[None]:
    """Let sums and averages read other tensors for the time of a block.

    Args:
        model: A float model.
        sites: Their names, as `Operands` found them.
        change: Called with the name of an operand (`Site.operand_name`) and its value, returns what is read instead.
    """
    modules = dict(model.named_modules())
    wanted = [Site.named(site) for site in dict.fromkeys(sites)]
    by_module = {site.module: {each for each in wanted if each.module == site.module} for site in wanted}
    owners = [modules[name] for name in by_module]

    def undo() -> None:
        for module in owners:
            module.__dict__.pop("forward", None)

    with afterwards(undo):
        for module, own in zip(owners, by_module.values(), strict=True):
            module.__dict__["forward"] = _changing(module.forward, own, change)
        yield


def _changing(
    original: Callable[..., Any], sites: set[Site], change: Callable[[str, Tensor], Tensor]
) -> Callable[..., Any]:
    """Return the forward of a module whose sites read what a function makes of their operands."""
    named = {(site.kind, site.number): site for site in sites}

    def changed(kind: str, number: int, index: int, x: Tensor) -> Tensor:
        site = named.get((kind, number))
        return x if site is None else change(site.operand_name(index), x)

    @wraps(original)
    def forward(*args: Any, **kwargs: Any) -> Any:
        with Operations(changed):
            return original(*args, **kwargs)

    return forward
