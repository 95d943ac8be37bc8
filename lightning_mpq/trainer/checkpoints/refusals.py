"""Which checkpoints are refused before anything is loaded from them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import CorruptModelError
from ...tools.files import damage
from .checkpoint import finetuned_state, policy_in_checkpoint


def refuse_checkpoint(checkpoint: Mapping[str, Any], path: Path, *, to_be_trained: bool) -> None:
    """Refuse a checkpoint of a packed model that is to be trained on, and a damaged file of ours.

    Args:
        checkpoint: What was read from it.
        path: Its file; may be missing.
        to_be_trained: Whether a fit is to go on from it.

    Raises:
        ValueError: If it cannot be trained on.
        CorruptModelError: If the file is damaged; it is looked at where it holds quantized layers.
    """
    policy = policy_in_checkpoint(checkpoint)
    if policy is not None and to_be_trained:
        raise ValueError(
            "The checkpoint holds a packed model, which cannot be trained on. Fit from a checkpoint of the float "
            "model, or validate, test and predict with this one."
        )
    concerned = policy is not None or finetuned_state(checkpoint) is not None
    if concerned and path.is_file() and (found := damage(path)) is not None:
        raise CorruptModelError(f"{path} is damaged: {found}. Take another copy of the file.")
