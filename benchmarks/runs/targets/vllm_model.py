"""SmolLM2 in vLLM: perceptrons in 4 bits, which is what its kernels for processors take, and the rest in float."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from torch import Tensor, nn

import lightning_mpq as mpq
from lightning_mpq.pipeline.temporary_packing import temporarily_packed
from lightning_mpq.targets import export_for

from ...recorded_instances.pretrained import smollm2
from ...tools.apart import python_of, run_process
from ...tools.results import Row

PYTHON = python_of("vllm")
"""Of the environment that ``make .peers/vllm/installed`` makes."""
GRANULARITIES: tuple[Literal["channel"] | int, ...] = ("channel", 32, 64)
MINUTES = 20


def measure(texts: Path, held_out: int) -> Iterator[Row]:
    """Yield the rows of SmolLM2.

    Args:
        texts: Folder of html files.
        held_out: Sequences of 32 tokens to compare on.
    """
    network, batches, _ = smollm2(texts, held_out)
    yield from rows("smollm2", network.model, torch.cat(batches))  # type: ignore[arg-type]


def rows(name: str, model: nn.Module, tokens: Tensor) -> Iterator[Row]:
    """Yield a row for each granularity: how far log probabilities are from those of the packed model.

    The product by 4 bits may be ours, see `in_vllm`; what is loaded, fused and multiplied by what is vLLM's choice.

    Args:
        name: What the model is called.
        model: A causal language model of transformers; left as it was.
        tokens: [n, length], what it reads.
    """
    layers = [each for each, layer in model.named_modules() if isinstance(layer, nn.Linear) and ".mlp." in each]
    for granularity in GRANULARITIES:
        policy = mpq.BitPolicy(dict.fromkeys(layers, mpq.WeightScheme(4, granularity)))
        with TemporaryDirectory() as folder:
            with temporarily_packed(model, policy):
                written = export_for("vllm", model, Path(folder) / "model", tokens[:2])
                with torch.no_grad():
                    own = model(input_ids=tokens).logits.log_softmax(-1)
            expected = own[:, :-1].gather(2, tokens[:, 1:, None])[..., 0]
            answer = _asked(Path(folder), tokens)
            found = torch.tensor(answer["log_probabilities"])
            yield {
                "model": name, "runtime": "vllm", "granularity": str(granularity), "layers": written.layers,
                "product": answer["product"], "tokens": found.numel(),
                "largest_difference": float((found - expected).abs().max()),
                "perplexity": float(found.mean().neg().exp()),
            }  # fmt: skip


def _asked(folder: Path, tokens: Tensor) -> dict[str, Any]:
    """Return what vLLM computes of the model in a folder."""
    (folder / "tokens.json").write_text(json.dumps(tokens.tolist()))
    paths = [str(folder / name) for name in ("model", "tokens.json", "answer.json")]
    run_process([str(PYTHON), "-m", "benchmarks.runs.targets.in_vllm", *paths], 60.0 * MINUTES)
    answer: dict[str, Any] = json.loads((folder / "answer.json").read_text())
    return answer
