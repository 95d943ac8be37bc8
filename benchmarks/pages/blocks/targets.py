"""Files of targets beside those of the runtimes' own quantizers: a table each."""

from __future__ import annotations

from statistics import geometric_mean

from ...tools.results import Content
from ...tools.selecting import grouped, having
from .tables import table


def onnx(content: Content, results: str) -> str:
    """Return bytes, speed and distance of each way to run the encoder in onnxruntime."""
    return _encoder(content, "onnxruntime")


def openvino(content: Content, results: str) -> str:
    """Return the same of OpenVINO."""
    return _encoder(content, "openvino")


def _encoder(content: Content, runtime: str) -> str:
    cells = []
    for (way,), rows in grouped(having(content["results"], runtime=runtime), "way").items():
        one, many = (having(rows, batch=size)[0] for size in (1, 32))
        times = [f"{row['milliseconds']:,.0f} ms, {row['over_float32']:.2f}" for row in (one, many)]
        cells.append([way, f"{one['file_bytes']:,}", *times, f"{one['squared_distance']:.4f}"])
    head = ["", "bytes of the file", "batch 1, times as fast", "batch 32", "squared distance on unseen text"]
    return "\n".join(table(head, cells))


def classes(content: Content, results: str) -> str:
    """Return bytes, speed, agreement and divergence of each way to run the network of classes in both runtimes."""
    cells = []
    for (runtime, way), rows in grouped(content["classes"], "runtime", "way").items():
        one, many = (having(rows, batch=size)[0] for size in (1, 32))
        times = [f"{row['milliseconds']:,.0f} ms, {row['over_float32']:.2f}" for row in (one, many)]
        quality = [f"{one['agreement']:.3f}", f"{one['divergence']:.4f}"]
        cells.append([f"{runtime}: {way}", f"{one['file_bytes']:,}", *times, *quality])
    head = ["", "bytes of the file", "batch 1, times as fast", "batch 32", "same first class", "divergence, unseen"]
    return "\n".join(table(head, cells))


def loaded(content: Content, results: str) -> str:
    """Return how far vLLM is from the packed model, by granularity."""
    cells = [
        [row["granularity"], str(row["layers"]), f"{row['largest_difference']:.1e}", f"{row['perplexity']:.2f}"]
        for row in content["loaded"]
    ]
    head = ["4 bits, a scale for each", "packed layers", "largest difference of a log probability", "perplexity"]
    return "\n".join(table(head, cells))


def ggml(content: Content, results: str) -> str:
    """Return the errors of layers in each of ggml's types, and how they compare."""
    cells = []
    for (kind,), rows in grouped(content["layers"], "type").items():
        means = [geometric_mean(row[key] for row in rows) for key in ("error_ggml", "error_ggml_importance", "error")]
        ratio = geometric_mean(row["over_ggml"] for row in rows)
        shown = [f"{mean:.2g}" for mean in means]
        cells.append([f"{kind}, {rows[0]['bits_a_weight']:g} bits, {len(rows)} layers", *shown, f"{ratio:.2f}"])
    return "\n".join(table(["error of a layer's output", "ggml", "with importance", "ours", "ours over theirs"], cells))


def language(content: Content, results: str) -> str:
    """Return bytes, perplexity, divergence and speed of each file of the language model in llama.cpp."""
    rows = content["language"]
    fastest = rows[0]["tokens_a_second"]  # of the float file
    cells = [
        [
            f"{row['mix']}, {row['way']}".removeprefix(", "),
            f"{row['file_bytes']:,}",
            f"{row['perplexity']:.2f}",
            f"{row['divergence']:.4f}",
            f"{row['tokens_a_second']:.0f}, {row['tokens_a_second'] / fastest:.2f}",
            row["types"],
        ]
        for row in rows
    ]
    head = ["", "bytes of the file", "perplexity", "nats a token", "tokens a second, over float16", "types of tensors"]
    return "\n".join(table(head, cells))
