"""Logits by llama-cpp-python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..export.example_inputs import ExampleInputs


def logits_of(path: Path, batch: ExampleInputs) -> Tensor:
    """Return the logits [n, length, classes] of a file of llama.cpp for token numbers, each row by itself.

    Args:
        path: The file.
        batch: Token numbers [n, length], by position or as ``input_ids``; a mask must hide nothing.

    Raises:
        NotImplementedError: If llama-cpp-python is not installed, or the inputs are of another kind.
    """
    try:
        import llama_cpp
    except ImportError as error:
        raise NotImplementedError(
            'llama-cpp-python is not installed (pip install "lightning_mpq[llama-cpp]"), so that gguf only has read it'
        ) from error
    tokens = batch.kwargs.get("input_ids", next(iter(batch.tensors)))
    mask = batch.kwargs.get("attention_mask")
    if tokens.is_floating_point() or tokens.dim() != 2 or (mask is not None and not bool(mask.all())):
        raise NotImplementedError("llama.cpp takes whole rows of token numbers: [n, length], nothing being masked")
    length, threads = tokens.shape[1], torch.get_num_threads()  # by default it takes every core, and waits spinning
    model: Any = llama_cpp.Llama(
        str(path), n_ctx=length + 8, n_batch=length, n_threads=threads, n_threads_batch=threads, logits_all=True,
        verbose=False,
    )  # fmt: skip
    try:
        found = []
        for row in tokens.tolist():
            model.reset()
            model.eval(row)
            found.append(np.array(model.scores[: len(row)]))
        return torch.from_numpy(np.stack(found))
    finally:
        model.close()
