"""What files of one language model say of the same tokens in llama.cpp, and how fast they are."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_mpq.export.example_inputs import ExampleInputs
from lightning_mpq.targets.gguf_file import opened
from lightning_mpq.targets.llama_cpp_run import logits_of

PROMPT, WRITTEN = 8, 32
"""Tokens that are read at once, and tokens that are then written one after the other to take the time."""


def log_probabilities(path: Path, tokens: Tensor) -> Tensor:
    """Return the logarithms of the probabilities [n, length - 1, classes] of what may follow each token but the last.

    Args:
        path: The file.
        tokens: [n, length].
    """
    found = logits_of(path, ExampleInputs.of(tokens))[:, :-1]
    for row in found:  # in place: all of them may take gigabytes
        row -= row.logsumexp(-1, keepdim=True)
    return found


def quality(tokens: Tensor, wanted: Tensor, found: Tensor) -> dict[str, float]:
    """Return perplexity, and the divergence from the float model in nats a token.

    Args:
        tokens: [n, length].
        wanted: What `log_probabilities` returned of the float model.
        found: The same of another file.
    """
    likelihood = found.gather(-1, tokens[:, 1:, None])
    divergence = sum(float((own.exp() * (own - other)).sum()) for own, other in zip(wanted, found, strict=True))
    return {"perplexity": float((-likelihood.mean()).exp()), "divergence": divergence / likelihood.numel()}


def types_of(path: Path) -> str:
    """Return how many tensors of each of ggml's types a file has, vectors apart."""
    counts = Counter(each.tensor_type.name for each in opened(path).tensors if min(each.shape) > 1 < len(each.shape))
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))


def speeds(paths: Mapping[str, Path], tokens: Tensor, repeats: int) -> dict[str, float]:
    """Return how many tokens are written in a second of processor time on one thread, the best of runs in turns.

    Args:
        paths: Name to file.
        tokens: [length], whose first ones are read and written.
        repeats: How many runs.
    """
    import llama_cpp

    models: dict[str, Any] = {
        name: llama_cpp.Llama(str(path), n_ctx=PROMPT + WRITTEN, n_threads=1, n_threads_batch=1, verbose=False)
        for name, path in paths.items()
    }
    best = dict.fromkeys(models, 0.0)
    for _ in range(repeats):
        for name, model in models.items():
            model.reset()
            model.eval(tokens[:PROMPT].tolist())
            start = time.process_time()
            for token in tokens[PROMPT : PROMPT + WRITTEN].tolist():
                model.eval([token])
            best[name] = max(best[name], WRITTEN / (time.process_time() - start))
    for model in models.values():
        model.close()
    return best
