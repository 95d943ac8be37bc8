"""Files of targets beside the float model and beside each runtime's own quantizer, at the same bytes.

MiniLM in onnxruntime, against ``MatMulNBitsQuantizer`` and ``quantize_dynamic``, and in OpenVINO, against NNCF. Layers
of MiniLM in ggml's types, against ggml's own rounding by an importance matrix. Errors are those on text that nothing
was rounded by; times are processor time, the least of several runs in turns, one thread.

    python -m benchmarks.runs.targets --texts DIR
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import geometric_mean

import torch
from torch import Tensor, nn

from ...recorded_instances.pretrained import minilm
from ...tools.environment import PACKAGES
from ...tools.results import Row, write_results
from ...tools.targets import Target, at_least, at_most, print_targets
from ..arguments import parsed, parser_of, parts_of
from . import ggml_layers, onnx_encoder, openvino_encoder
from .small_encoder import SmallEncoder

PEERS = ("onnxruntime", "onnx", "openvino", "nncf", "gguf", "llama-cpp-python", "transformers")
RUNTIMES = {"onnxruntime": onnx_encoder.measure, "openvino": openvino_encoder.measure}


def main(words: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, print and write."""
    parser = parser_of("targets", __doc__)
    parser.add_argument("--texts", type=Path, help="folder of html files with at least 100 paragraphs")
    parser.add_argument("--samples", type=int, default=128, help="paragraphs that it is rounded by")
    parser.add_argument("--held-out", type=int, default=64, help="further ones to judge by")
    parser.add_argument("--repeats", type=int, default=5, help="runs that the least time is taken of")
    arguments = parsed(parser, words, repeats=1, samples=16, held_out=32)
    if arguments.texts is None and not arguments.quick:
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
    layers = []
    if not arguments.quick:
        measured = (arguments.texts, arguments.samples, arguments.held_out)
        layers = parts.rows(f"ggml-{counts}", partial(ggml_layers.measure, *measured))
    reached = targets(encoder, layers)
    print_targets(reached, arguments.quick)
    path = write_results(
        "targets",
        settings={
            "paragraphs": arguments.samples, "held_out": arguments.held_out,
            "repeats": arguments.repeats, "threads": 1, "clock": "processor time, the least of runs in turns",
        },
        results=encoder,
        targets=reached,
        output=arguments.output,
        packages=(*PACKAGES, *PEERS),
        layers=layers,
    )  # fmt: skip
    print(f"written to {path}")


def of_encoder(arguments: Namespace, runtime: str) -> list[Row]:
    """Return the rows of MiniLM in a runtime, or of something small in a quick run."""
    samples = arguments.samples
    name, model, tokens = subject(arguments, samples, arguments.held_out)
    return RUNTIMES[runtime](name, model, tokens[:samples], tokens[samples:], arguments.repeats)


def subject(arguments: Namespace, samples: int, held_out: int) -> tuple[str, nn.Module, Tensor]:
    """Return MiniLM, or something small in a quick run, with token numbers."""
    if arguments.quick:
        return "made_up", SmallEncoder().eval(), torch.randint(0, 64, (samples + held_out, 8))
    model, batches, _ = minilm(arguments.texts, samples + held_out)
    return "minilm", model, torch.cat(batches)


def targets(encoder: Sequence[Row], layers: Sequence[Row]) -> list[Target]:
    """Return what was demanded, and what was measured."""
    alone = {(row["runtime"], row["way"]): row for row in encoder if row["batch"] == 1}
    own = {scheme: alone["onnxruntime", onnx_encoder.own_way(*scheme)] for scheme in onnx_encoder.OWN}
    model = next(iter(alone.values()))["model"]
    fastest = max(row["over_float32"] for row in own.values())
    found = [at_least(f"{model} in onnxruntime, times as fast as float32, batch 1, fastest scheme", fastest, 1.5)]
    pairs = {
        ("onnxruntime", "MatMulNBitsQuantizer"): own[4, onnx_encoder.BLOCK],
        ("onnxruntime", "quantize_dynamic"): own[7, "channel"],
        ("openvino", "NNCF"): alone.get(("openvino", "lightning_mpq")),
    }
    for key, ours in pairs.items():
        if ours is not None:
            for what, column in (("bytes of its file", "file_bytes"), ("its squared distance", "squared_distance")):
                found.append(at_most(f"{model}: {what} over {key[1]}'s", ours[column] / alone[key][column], 1.0))
    for name in dict.fromkeys(row["type"] for row in layers):
        ratio = geometric_mean(row["over_ggml"] for row in layers if row["type"] == name)
        found.append(at_most(f"{name}: error of a layer's output over ggml's, same bytes", ratio, 1.0))
    return found


if __name__ == "__main__":
    main()
