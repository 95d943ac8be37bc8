"""Arguments of another kind than a function's annotations say, refused in one sentence before anything is done."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache, wraps
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from torch import Tensor

from .checks import shown

Function = TypeVar("Function", bound=Callable[..., Any])
_PLAIN = (NoneType, bool, int, float, str, list, tuple, dict)
"""Types whose values are shown; of others the type is named."""
_LEFT_TO_THE_FUNCTION = (Any, bool, int, float, str)


def checked_kinds(function: Function) -> Function:
    """Refuse arguments that are no instances of the classes in their annotations.

    Numbers and choices by name, lists of these and of tensors are left to the function, which says what they may be; so
    are batches, which may be anything that can be iterated.

    Raises:
        TypeError: In a call with such an argument; names it, what it must be, and what came.

    Example:
        >>> from pathlib import Path
        >>> @checked_kinds
        ... def size(file: Path): return file.stat().st_size
        >>> size(3)
        Traceback (most recent call last):
        ...
        TypeError: size: file must be a path, got 3.
    """
    signature = inspect.signature(function)

    @cache
    def hints() -> dict[str, Any]:
        return get_type_hints(inspect.unwrap(function))

    @wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        try:
            given = signature.bind(*args, **options).arguments
        except TypeError:
            given = {}  # the call itself says what is wrong with it
        for name, value in given.items():
            kinds = _kinds(hints().get(name, Any))
            if not any(_fits(value, kind) or _is_left(kind) for kind in kinds):
                what = function.__qualname__.removesuffix(".__init__")
                said = " or ".join(dict.fromkeys(_described(kind) for kind in kinds))
                got = shown(value) if isinstance(value, _PLAIN) else _article(_name_of(value))
                raise TypeError(f"{what}: {name} must be {said}, got {got}.{_advice(value, kinds)}")
        return function(*args, **options)

    return cast(Function, call)


def alternatives(hint: Any) -> list[Any]:
    """Return the kinds of which a hint takes one."""
    if get_origin(hint) in (Union, UnionType):
        return [each for one in get_args(hint) for each in alternatives(one)]
    return [hint]


def _kinds(hint: Any) -> list[Any]:
    """Return the kinds that an argument may be of; a text is a path where a path is meant."""
    kinds = alternatives(hint)
    return [kind for kind in kinds if kind is not str] if any(map(_is_path, kinds)) else kinds


def _fits(value: Any, kind: Any) -> bool:
    """Tell whether a value is of a kind, or nobody here can tell."""
    origin = get_origin(kind)
    if _is_path(kind):
        return isinstance(value, (str, os.PathLike))
    if origin is type:
        return isinstance(value, type) and issubclass(value, get_args(kind))
    if origin is Callable:
        return callable(value)
    if origin is Mapping:
        return isinstance(value, Mapping) and all(map(_of(kind), value.values()))
    if origin is Sequence:
        return _is_list(value) and all(map(_of(kind), value))
    if origin is Iterable and isinstance(value, (list, tuple)):  # anything else may be gone through only once
        return all(map(_of(kind), value))
    return origin is not None or not _is_class(kind) or isinstance(value, kind)


def _is_class(kind: Any) -> bool:
    """Tell whether it is a class of which a value must be an instance; a protocol says what is called, no more."""
    return isinstance(kind, type) and kind not in _LEFT_TO_THE_FUNCTION and not getattr(kind, "_is_protocol", False)


def _of(kind: Any) -> Callable[[Any], bool]:
    """Return whether items of a list, or values of a mapping, are of the kind that its hint names."""
    kinds = alternatives(get_args(kind)[-1])
    return lambda item: any(_fits(item, each) for each in kinds)


def _is_left(kind: Any) -> bool:
    """Tell whether it is a list or mapping of what the function itself looks at."""
    if get_origin(kind) not in (Sequence, Mapping, Iterable):
        return False
    return any(each in (*_LEFT_TO_THE_FUNCTION, Tensor) for each in alternatives(get_args(kind)[-1]))


def _is_list(value: Any) -> bool:
    """Tell whether it can be gone through again and again, as lists, arrays and sets can; a text is one value."""
    return hasattr(value, "__len__") and hasattr(value, "__iter__") and not isinstance(value, (str, Mapping))


def _is_path(kind: Any) -> bool:
    kind = get_origin(kind) or kind
    return isinstance(kind, type) and issubclass(kind, os.PathLike)


def _described(kind: Any) -> str:
    origin = get_origin(kind)
    if _is_path(kind):
        return "a path"
    if kind is NoneType:
        return "None"
    if origin is type:
        return f"a subclass of {get_args(kind)[0].__name__}"
    if origin is Callable:
        return "a function"
    if origin in (Sequence, Iterable, Mapping):
        of = " or ".join(getattr(each, "__name__", str(each)) for each in alternatives(get_args(kind)[-1]))
        return f"a mapping from names to {of}" if origin is Mapping else f"a list of {of}"
    return _article(kind.__name__)


def _article(name: str) -> str:
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"


def _name_of(value: Any) -> str:
    return f"class {value.__name__}" if isinstance(value, type) else type(value).__name__


def _advice(value: Any, kinds: Sequence[Any]) -> str:
    """Return what to do, where one can see it: an attribute of the value, its file, an instance of it; settings."""
    classes: tuple[type, ...] = tuple(kind for kind in kinds if _is_class(kind) and kind is not NoneType)
    if isinstance(value, type) and issubclass(value, classes):
        return f" Give an instance, {value.__name__}(...)."
    for name, own in vars(value).items() if hasattr(value, "__dict__") and not isinstance(value, type) else ():
        if isinstance(own, classes) and not name.startswith("_"):
            return f" Give its {name}."
    loading = next((kind for kind in classes if isinstance(value, (str, os.PathLike)) and hasattr(kind, "load")), None)
    if loading is not None:
        return f" {loading.__name__}.load(path) reads one from a file."
    for kind in classes:
        own = fields(kind) if is_dataclass(kind) else ()
        if own and all(each.default is not MISSING or each.default_factory is not MISSING for each in own):
            return f" {kind.__name__}({own[0].name}=...) makes one."
    return ""
