"""SmolLM2 in llama.cpp: its own mixes with an importance matrix, and ours in the same bytes and in the same types."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn

import lightning_mpq as mpq

from ...methods.llama_quantize import F16, quantize_by_llama
from ...recorded_instances.pretrained import smollm2, smollm2_file
from ...tools.results import Row
from .gguf_figures import log_probabilities, quality, speeds, types_of
from .gguf_policies import decided_by, importance, policy_like, write

MIXES = ("Q3_K_M", "Q4_K_M")
FLOAT, PEER, SAME = "float16", "llama.cpp, importance matrix", "types of the mix"
CHOSEN, ALONE = "types chosen", "types chosen, layers rounded alone"
LENGTH = 128
"""Tokens of a sequence that is judged."""


def measure(texts: Path, samples: int, held_out: int, repeats: int, folder: Path) -> Iterator[Row]:
    """Yield the rows of SmolLM2.

    Args:
        texts: Folder of html files.
        samples: Sequences of 32 tokens to calibrate on.
        held_out: Further ones to judge by, four by four.
        repeats: Runs that the best time is taken of.
        folder: Where files are written.
    """
    network, batches, likelihood = smollm2(texts, samples + held_out)
    tokens = torch.cat(batches)
    plain = folder / "f16.gguf"
    quantize_by_llama(smollm2_file(), plain, F16)
    calibration, unseen = tokens[:samples].split(8), tokens[samples:].reshape(-1, LENGTH)
    yield from rows("smollm2", network, list(calibration), unseen, likelihood, plain, repeats)


def rows(
    name: str,
    network: nn.Module,
    calibration: list[Tensor],
    unseen: Tensor,
    likelihood: mpq.Likelihood,
    plain: Path,
    repeats: int,
) -> Iterator[Row]:
    """Yield a row for the float model, and for each mix, our types in its bytes, and our rounding in its types.

    Types that are chosen are there twice: rounded layer after layer, as `quantize` does it, and each layer by the
    inputs that it has in the float model, as candidates are.

    Args:
        name: What the model is called.
        network: The float model; left as it was.
        calibration: Token numbers, by which weights are rounded and types are chosen.
        unseen: Others, [n, length], that it is judged by.
        likelihood: What the outputs mean.
        plain: The float model's GGUF file; others are written beside it, or found there.
        repeats: Runs that the best time is taken of.
    """
    ways, folder = {(FLOAT, ""): plain}, plain.parent
    for mix, way in product(MIXES, (PEER, ALONE, CHOSEN, SAME)):
        ways[way, mix] = folder / f"{mix} {way}.gguf"
    left = {key for key, path in ways.items() if not path.exists()}
    for mix in MIXES:
        if (PEER, mix) in left:
            quantize_by_llama(plain, ways[PEER, mix], f"MOSTLY_{mix}", importance(network, calibration, folder))
    if any(way in (CHOSEN, ALONE) for way, _ in left):
        taylor, rounded, rest = decided_by(network, plain, calibration, likelihood)
        for mix in MIXES:
            budget = mpq.Budget(file_bytes=ways[PEER, mix].stat().st_size, file_rest=rest)
            policy = mpq.allocate(taylor, budget).policy
            write(network, policy, plain, calibration, ways[ALONE, mix], rounded)
            write(network, policy, plain, calibration, ways[CHOSEN, mix])
    for mix in MIXES:
        if (SAME, mix) in left:
            write(network, policy_like(ways[PEER, mix], network), plain, calibration, ways[SAME, mix])
    found = speeds({" ".join(key): path for key, path in ways.items()}, unseen[0], repeats)
    wanted = log_probabilities(plain, unseen)
    for (way, mix), path in ways.items():
        yield {
            "model": name, "runtime": "llama.cpp", "way": way, "mix": mix, "file_bytes": path.stat().st_size,
            **quality(unseen, wanted, log_probabilities(path, unseen)),
            "tokens_a_second": found[f"{way} {mix}"], "types": types_of(path),
        }  # fmt: skip
