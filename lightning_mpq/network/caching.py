"""Keys and values of earlier tokens, which models of transformers return or not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import nn

from ..tools.attributes import shadowed


@contextmanager
def caching(model: nn.Module, use_cache: bool) -> Iterator[None]:
    """Let models of transformers return keys and values, or none, as their configurations say for a while.

    Args:
        model: The model, or one that holds such models.
        use_cache: Whether they return them.
    """
    with ExitStack() as stack:
        configs = {id(c): c for module in model.modules() if hasattr(c := getattr(module, "config", None), "use_cache")}
        for config in configs.values():
            stack.enter_context(shadowed(config, use_cache=use_cache))
        yield
