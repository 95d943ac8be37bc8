"""Warnings that name the line of the user's own code which led to them."""

from __future__ import annotations

import sys
import warnings

_BETWEEN = ("lightning_mpq", "torch", "lightning", "lightning_fabric", "pytorch_lightning", "contextlib", "functools")
"""Packages whose frames lie between the user's line and what warns: decorators, hooks, the Trainer."""


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn, and name the innermost line that is neither ours nor PyTorch's or Lightning's.

    How many calls lie between the two differs from one way in to the next: a function, a callback of a Trainer, a hook
    of a module, with arguments checked or not.

    Args:
        message: What happened, and what to do.
        category: Class of the warning.
    """
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _BETWEEN:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
