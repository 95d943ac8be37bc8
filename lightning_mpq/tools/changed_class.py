"""Classes made on demand that put a mixin in front of a module's own; copies and pickles find them again."""

from __future__ import annotations

from functools import cache
from typing import Any, ClassVar

from torch import nn


class ChangedClass(nn.Module):
    """What all classes made by `changed_class` share.

    Attributes:
        mixin: What was put in front of the original class.
        original_class: The class before the change.
        computed: Names of attributes that the mixin computes when they are read.
    """

    mixin: ClassVar[type[nn.Module]]
    original_class: ClassVar[type[nn.Module]]
    computed: ClassVar[tuple[str, ...]]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Copy and pickle by what the class was made from, since it has no name that could be imported."""
        return _new_object, (self.mixin, self.original_class, self.computed), self.__getstate__()


@cache
def changed_class(mixin: Any, original: Any, computed: tuple[str, ...] = ()) -> Any:
    """Return the subclass of a module's class that puts a mixin in front of it; the same one each time.

    Args:
        mixin: Its methods come first; its ``prefix`` begins the name of the class.
        original: The module's class.
        computed: Names of attributes that become properties, read by ``mixin.compute(self, name)``.
    """
    body: dict[str, Any] = {name: property(_computing(name)) for name in computed}
    body |= {"mixin": mixin, "original_class": original, "computed": computed}
    body |= {"__module__": original.__module__, "__doc__": original.__doc__}
    return type(original)(f"{mixin.prefix}{original.__name__}", (mixin, ChangedClass, original), body)


def change_class(module: nn.Module, mixin: Any, computed: tuple[str, ...] = ()) -> None:
    """Put a mixin in front of a module's own class; the module stays the same object."""
    module.__class__ = changed_class(mixin, original_class(module), computed)


def original_class(module: nn.Module) -> Any:
    """Return a module's class as it was before any change."""
    return type(module).original_class if isinstance(module, ChangedClass) else type(module)


def change_back(module: nn.Module) -> None:
    """Give a module its own class back."""
    assert isinstance(module, ChangedClass)
    module.__class__ = type(module).original_class  # type: ignore[assignment]


def _computing(name: str) -> Any:
    return lambda self: self.compute(name)


def _new_object(mixin: Any, original: Any, computed: tuple[str, ...]) -> nn.Module:
    made = changed_class(mixin, original, computed)
    return made.__new__(made)
