"""Files of targets beside the float model and beside each runtime's own quantizer, at the same bytes.

MiniLM in onnxruntime, against ``MatMulNBitsQuantizer`` and ``quantize_dynamic``, and in OpenVINO, against NNCF. Layers
of MiniLM in ggml's types, against ggml's own rounding by an importance matrix. SmolLM2 in llama.cpp, against its own
mixes of types with one, and in vLLM, against the packed model. EfficientNet-Lite0 in both other runtimes, against their
quantizers of 8 by 8 bits. Errors are those on text and pictures that nothing was rounded by; times are processor time,
the least of several runs in turns, one thread.

    python -m benchmarks.runs.targets --texts DIR
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from ...recorded_instances.pretrained import minilm
from ...tools.environment import PACKAGES
from ...tools.results import Row, write_results
from ...tools.targets import print_targets
from ..arguments import parsed, parser_of, parts_of
from . import classifier, ggml_layers, gguf_model, onnx_encoder, openvino_encoder, vllm_model
from .small_networks import SmallEncoder, small_classifier
from .targets import targets

PEERS = ("onnxruntime", "onnx", "openvino", "nncf", "gguf", "llama-cpp-python", "transformers")
RUNTIMES = {"onnxruntime": onnx_encoder.measure, "openvino": openvino_encoder.measure}


def main(words: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, print and write."""
    parser = parser_of("targets", __doc__)
    parser.add_argument("--texts", type=Path, help="folder of html files with at least 100 paragraphs")
    parser.add_argument("--samples", type=int, default=128, help="paragraphs that it is rounded by")
    parser.add_argument("--held-out", type=int, default=64, help="further ones to judge by")
    parser.add_argument("--repeats", type=int, default=5, help="runs that the least time is taken of")
    parser.add_argument("--tokens", type=int, default=64, help="sequences of 32 tokens that SmolLM2 is rounded by")
    parser.add_argument("--known", action="store_true", help="only collect the parts that are there")
    arguments = parsed(parser, words, repeats=1, samples=16, held_out=32)
    if arguments.texts is None and not (arguments.quick or arguments.known):
        parser.error("--texts=FOLDER is needed, with html files")
    torch.set_num_threads(1)
    parts = parts_of(arguments)
    counts = f"{arguments.samples}-{arguments.held_out}"
    repeats = arguments.repeats
    encoder = [
        row
        for runtime in (RUNTIMES if not arguments.quick else ("onnxruntime",))
        for row in parts.rows(f"minilm-{runtime}-{counts}-{repeats}", partial(of_encoder, arguments, runtime))
    ]
    layers: list[Row] = []
    language: list[Row] = []
    loaded: list[Row] = []
    classes: list[Row] = []
    if not arguments.quick:
        measured = (arguments.texts, arguments.samples, arguments.held_out)
        layers = parts.rows(f"ggml-{counts}", partial(ggml_layers.measure, *measured))
        of_tokens = f"smollm2-llama_cpp-{arguments.tokens}-{arguments.held_out}-{repeats}"
        language = parts.rows(of_tokens, partial(of_language, arguments))
        if vllm_model.PYTHON.exists() or arguments.known:
            loaded = parts.rows("smollm2-vllm", partial(vllm_model.measure, arguments.texts, 4))
        else:
            parts.left_out.append("smollm2-vllm: not installed; make .peers/vllm/installed")
    for runtime in classifier.FILES if not arguments.quick else ("onnxruntime",):
        name = f"efficientnet_lite0-{runtime}-{counts}-{repeats}"
        classes += parts.rows(name, partial(of_classifier, arguments, runtime))
    reached = targets(encoder, layers, language, classes, loaded)
    print_targets(reached, arguments.quick)
    path = write_results(
        "targets",
        settings={
            "paragraphs": arguments.samples, "tokens": 32 * arguments.tokens, "held_out": arguments.held_out,
            "repeats": arguments.repeats, "threads": 1, "clock": "processor time, the least of runs in turns",
            "skipped": parts.left_out,
        },
        results=encoder,
        targets=reached,
        output=arguments.output,
        packages=(*PACKAGES, *PEERS),
        layers=layers,
        language=language,
        classes=classes,
        loaded=loaded,
    )  # fmt: skip
    print(f"written to {path}")


def of_language(arguments: Namespace) -> list[Row]:
    """Return the rows of SmolLM2, whose files take a gigabyte while they are measured."""
    with TemporaryDirectory() as folder:
        counts = (arguments.tokens, arguments.held_out, arguments.repeats)
        return list(gguf_model.measure(arguments.texts, *counts, Path(folder)))


def of_encoder(arguments: Namespace, runtime: str) -> list[Row]:
    """Return the rows of MiniLM in a runtime, or of something small in a quick run."""
    samples = arguments.samples
    name, model, tokens = subject(arguments, samples, arguments.held_out)
    return RUNTIMES[runtime](name, model, tokens[:samples], tokens[samples:], arguments.repeats)


def of_classifier(arguments: Namespace, runtime: str) -> Iterator[Row]:
    """Return the rows of EfficientNet-Lite0 in a runtime, or of something small in a quick run."""
    counts = (arguments.samples, arguments.held_out)
    if not arguments.quick:
        return classifier.measure(*counts, arguments.repeats, runtime)
    seen, unseen = (torch.randn(count, 3, 12, 12) for count in counts)
    return classifier.rows("made_up", small_classifier().eval(), seen, unseen, arguments.repeats, runtime)


def subject(arguments: Namespace, samples: int, held_out: int) -> tuple[str, nn.Module, Tensor]:
    """Return MiniLM, or something small in a quick run, with token numbers."""
    if arguments.quick:
        return "made_up", SmallEncoder().eval(), torch.randint(0, 64, (samples + held_out, 8))
    model, batches, _ = minilm(arguments.texts, samples + held_out)
    return "minilm", model, torch.cat(batches)


if __name__ == "__main__":
    main()
