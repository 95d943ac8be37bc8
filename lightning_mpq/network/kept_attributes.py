"""What a forward pass keeps on the modules of a model, apart for passes that take turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from operator import eq, is_
from typing import Any

from torch import nn

from ..tools.clean_up import afterwards

_OF_EVERY_MODULE = frozenset(nn.Module().__dict__) - {"_buffers"}
"""Parameters, modules and hooks, which no pass changes."""


@dataclass(frozen=True)
class _Changes:
    """What became of the attributes of one module: values that are new, names that are gone, contents of containers."""

    attributes: dict[str, Any]
    new: dict[str, Any]
    gone: list[str]
    contents: list[tuple[Any, Any]]

    def apply(self) -> None:
        """Make the attributes so."""
        self.attributes.update(self.new)
        for name in self.gone:
            self.attributes.pop(name, None)
        for container, content in self.contents:
            container.clear()
            container.extend(content) if isinstance(container, list) else container.update(content)


class KeptAttributes:
    """Attributes that one pass sets on modules, such as features that a hook takes and the model reads further on.

    Passes that take turns would otherwise read what another one has left there.

    Example:
        >>> net = nn.Identity()
        >>> first, second = KeptAttributes(net), KeptAttributes(net)
        >>> with first.in_place():
        ...     net.seen = 1
        >>> with second.in_place():
        ...     hasattr(net, "seen")
        False
        >>> with first.in_place():
        ...     net.seen
        1
    """

    def __init__(self, model: nn.Module) -> None:
        """Keep nothing yet."""
        self._modules = list(model.modules())
        self._own: list[_Changes] = []

    @contextmanager
    def in_place(self, stays: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """Run a part of the pass with what its parts before have set; afterwards put back what was there.

        Args:
            stays: Whether it is left in place, as after any pass, asked when the part is over.
        """
        before = [(module.__dict__, _contents(module.__dict__), dict(module.__dict__)) for module in self._modules]

        def leave() -> None:
            if stays():
                return
            own, back = [], []
            for now, contents, attributes in before:
                changed = [(each, content) for each, content in contents if not _same(each, content)]
                if not changed and _same(now, attributes):
                    continue
                new = {name: value for name, value in now.items() if attributes.get(name, now) is not value}
                old = {name: value for name, value in attributes.items() if now.get(name, before) is not value}
                gone, added = [name for name in old if name not in now], [name for name in new if name not in old]
                own.append(_Changes(now, new, gone, [(each, each.copy()) for each, _ in changed]))
                back.append(_Changes(now, old, added, changed))
            self._own = own
            for changes in back:
                changes.apply()

        with afterwards(leave):
            for changes in self._own:
                changes.apply()
            yield


def _contents(attributes: dict[str, Any]) -> list[tuple[Any, Any]]:
    """Return the dictionaries and lists among the attributes, each with a copy of what is in it."""
    own = [attributes[name] for name in attributes.keys() - _OF_EVERY_MODULE]
    return [(value, value.copy()) for value in own if isinstance(value, (dict, list))]


def _same(container: Any, content: Any) -> bool:
    """Tell whether the very same things are in a container, in the same order."""
    if len(container) != len(content):
        return False
    if isinstance(container, list):
        return all(map(is_, container, content))
    return all(map(is_, container.values(), content.values())) and all(map(eq, container, content))
