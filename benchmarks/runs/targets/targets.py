"""What files of targets were meant to reach beside those of the runtimes' own quantizers."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import geometric_mean

from ...tools.results import Row
from ...tools.selecting import having
from ...tools.targets import Target, at_least, at_most
from . import classifier, gguf_model, onnx_encoder


def targets(
    encoder: Sequence[Row],
    layers: Sequence[Row],
    language: Sequence[Row],
    classes: Sequence[Row],
    loaded: Sequence[Row] = (),
) -> list[Target]:
    """Return what was demanded, and what was measured.

    Args:
        encoder: Of MiniLM, or of something small.
        layers: Of its layers in ggml's types.
        language: Of SmolLM2.
        classes: Of EfficientNet-Lite0.
        loaded: Of SmolLM2 in vLLM.
    """
    found = [*_of_encoder(encoder), *_of_layers(layers), *_of_language(language), *_of_classes(classes)]
    if loaded:
        most = max(row["largest_difference"] for row in loaded)
        found.append(at_most("smollm2 in vLLM: largest difference of a token's log probability", most, 1e-3))
    return found


def _of_encoder(rows: Sequence[Row]) -> list[Target]:
    if not rows:
        return []
    alone = {(row["runtime"], row["way"]): row for row in rows if row["batch"] == 1}
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
    return found


def _of_layers(rows: Sequence[Row]) -> list[Target]:
    found = []
    for name in dict.fromkeys(row["type"] for row in rows):
        ratio = geometric_mean(row["over_ggml"] for row in rows if row["type"] == name)
        found.append(at_most(f"{name}: error of a layer's output over ggml's, same bytes", ratio, 1.0))
    return found


def _of_language(rows: Sequence[Row]) -> list[Target]:
    found = []
    for mix in dict.fromkeys(row["mix"] for row in rows if row["mix"]):
        of_mix = {row["way"]: row for row in having(rows, mix=mix)}
        peer = of_mix.pop(gguf_model.PEER)
        for way, ours in of_mix.items():
            for what in ("file_bytes", "perplexity", "divergence"):
                name = f"smollm2 in llama.cpp, {way}: {what.replace('_', ' ')} over that of {mix}"
                found.append(at_most(name, ours[what] / peer[what], 1.0))
    return found


def _of_classes(rows: Sequence[Row]) -> list[Target]:
    found = []
    for runtime, peers in (("onnxruntime", (classifier.EIGHT, classifier.SEVEN)), ("openvino", (classifier.NNCF,))):
        of_way = {row["way"]: row for row in having(rows, runtime=runtime, batch=1)}
        for peer in peers if of_way else ():
            for what in ("file_bytes", "divergence"):
                name = f"{of_way[peer]['model']} in {runtime}: {what.replace('_', ' ')} over that of {peer}"
                found.append(at_most(name, of_way[classifier.OWN][what] / of_way[peer][what], 1.0))
    return found
