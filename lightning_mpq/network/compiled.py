"""Models that ``torch.compile`` has wrapped: a module of its own around them, which lengthens every name."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

_WRAPPED = "_orig_mod"


def uncompiled(model: nn.Module) -> nn.Module:
    """Return the model that ``torch.compile(model)`` was made of, whose layers it computes with; or the model itself.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(2, 2))
        >>> uncompiled(torch.compile(net)) is net is uncompiled(net)
        True
    """
    while isinstance(inner := model._modules.get(_WRAPPED), nn.Module):
        model = inner
    return model


def said_of_compiled(name: str, known: Iterable[str]) -> str:
    """Return what is said where a name is not known, if one is known that differs in what was compiled; or nothing."""
    alike = [other for other in known if _plain(other) == _plain(name)]
    if not alike:
        return ""
    return (
        f" torch.compile makes {alike[0]!r} of that name, or the other way round: give a model that is compiled in the "
        "same places, or do this before anything is compiled (module.compile() leaves names as they are)."
    )


def _plain(name: str) -> str:
    return ".".join(part for part in name.split(".") if part != _WRAPPED)
