"""Names by pattern: the name itself, a shell glob, or a regular expression after ``re:``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase


def matching(pattern: str, names: Iterable[str], where: str, what: str = "layer") -> list[str]:
    """Return the names that a pattern matches, in order.

    Args:
        pattern: A name, a shell glob (``"layer1.*"``), or ``"re:"`` and an expression for the whole name.
        names: All names.
        where: Which argument the pattern stands in, for messages.
        what: What the names are of, for messages.

    Raises:
        ValueError: If it matches none, or is no regular expression.

    Example:
        >>> matching("re:conv[12]", ["conv1", "conv2", "conv10"], "keep_float")
        ['conv1', 'conv2']
    """
    names = list(names)
    if pattern in names:
        return [pattern]
    if pattern.startswith("re:"):
        try:
            expression = re.compile(pattern[3:])
        except re.error as error:
            raise ValueError(f"{where}: {pattern!r} is not a regular expression: {error}.") from error
        found = [name for name in names if expression.fullmatch(name)]
    else:
        found = [name for name in names if fnmatchcase(name, pattern)]
    if not found:
        shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        raise ValueError(f"{where}: the pattern {pattern!r} matches no {what}. {what.capitalize()}s: {shown}.")
    return found
