"""What other libraries say in every run, and nobody who runs a job can do anything about."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from lightning.pytorch.utilities.rank_zero import rank_zero_module

_DEPRECATED = r"`isinstance\(treespec, LeafSpec\)` is deprecated"
"""What torch says of Lightning's code."""
_ADVERTISEMENT = "💡 Tip"


@contextmanager
def less_said() -> Iterator[None]:
    """Leave out, within a block, advertisements and what libraries have to say to each other."""
    logger: logging.Logger = rank_zero_module.log
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=_DEPRECATED, category=FutureWarning)
        logger.addFilter(_is_news)
        try:
            yield
        finally:
            logger.removeFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(_ADVERTISEMENT)
