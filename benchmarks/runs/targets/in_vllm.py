"""Computes in vLLM, in an environment of its own: log probabilities of tokens under an exported model.

    .peers/vllm/bin/python -m benchmarks.runs.targets.in_vllm FOLDER TOKENS ANSWER

vLLM's product by weights of 4 bits is compiled for AVX-512 alone. Where a processor lacks that, everything of vLLM's is
run but this operation, in whose place its layout is read by a few lines of torch.
"""

from __future__ import annotations

import json
import os
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

PRODUCT = "cpu_gemm_wna16"


def main(folder: str, tokens: str, answer: str) -> None:
    """Load a folder, compute, and write who multiplied and the log probability of each token but the first.

    Args:
        folder: What was exported.
        tokens: JSON file with rows of token numbers.
        answer: JSON file to write.
    """
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # in this process, where an operation can be put in
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    for name in ("torchaudio", "torchcodec"):  # PyPI's are built for CUDA, and cannot be loaded beside this torch
        sys.modules[name] = ModuleType(name)
        sys.modules[name].__spec__ = ModuleSpec(name, None)
    from ...tools import without_torchvision_ops  # noqa: F401, isort: skip
    import vllm
    from vllm import _custom_ops

    if own := not hasattr(torch.ops._C, PRODUCT):
        setattr(_custom_ops, PRODUCT, product)
    rows = json.loads(Path(tokens).read_text())
    model = vllm.LLM(
        model=folder, skip_tokenizer_init=True, dtype="float32", enforce_eager=True, max_model_len=len(rows[0]) + 8,
        distributed_executor_backend="uni",
    )  # fmt: skip
    asked = vllm.SamplingParams(max_tokens=1, prompt_logprobs=0, temperature=0, detokenize=False)
    done = model.generate([{"prompt_token_ids": row} for row in rows], asked)
    found = [
        [step[token].logprob for token, step in zip(row[1:], each.prompt_logprobs[1:], strict=True)]
        for row, each in zip(rows, done, strict=True)
    ]
    Path(answer).write_text(json.dumps({"product": "torch" if own else "vLLM", "log_probabilities": found}))


def product(
    input: Tensor, q_weight: Tensor, scales: Tensor, zeros: None, bias: Tensor | None, pack_factor: int, isa_hint: str
) -> Tensor:
    """Return ``input @ W + bias`` as vLLM's operation of that name does.

    Args:
        input: [tokens, K].
        q_weight: int32 [N / 16, 2 K]: for 16 outputs and each input 16 codes, 8 a number.
        scales: [blocks, N].
        zeros: None: codes stand for themselves less 8.
        bias: [N].
        pack_factor: Codes of a number, 8.
        isa_hint: Not looked at.
    """
    numbers = q_weight.unflatten(1, (-1, 16 // pack_factor))[..., None]
    codes = (numbers >> (4 * torch.arange(pack_factor, dtype=torch.int32))) & 15
    weight = codes.flatten(2).transpose(0, 1).flatten(1).to(torch.float32) - 8
    weight *= scales.float().repeat_interleave(len(weight) // len(scales), 0)
    found = input.float() @ weight
    return (found if bias is None else found + bias).to(input.dtype)


if __name__ == "__main__":
    main(*sys.argv[1:])
