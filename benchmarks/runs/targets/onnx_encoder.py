"""An encoder in onnxruntime, 4 bits in blocks of 32: our file beside the float model and onnxruntime's quantizer."""

from __future__ import annotations

import copy
import time
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import lightning_mpq as mpq

from ...tools.results import Row

BLOCK = 32
WAYS = {
    "float32": "float.onnx",
    "MatMulNBitsQuantizer": "peer.onnx",
    "lightning_mpq": "own.onnx",
}
SCHEMES: tuple[tuple[int, str | int], ...] = ((4, 128), (4, "channel"), (8, "channel"))
"""Bits and granularity of what is timed."""


def measure(name: str, model: nn.Module, calibration: Tensor, unseen: Tensor, repeats: int) -> list[Row]:
    """Return a row for each way and batch size.

    Args:
        name: What the model is called.
        model: Makes unit vectors of token numbers; quantized in place.
        calibration: [n, length], what is rounded by.
        unseen: [n, length], what is judged by, at least 32.
        repeats: How often each is run.
    """
    batches = list(calibration.split(16))
    with TemporaryDirectory() as folder:
        paths = {way: Path(folder) / name for way, name in WAYS.items()}
        _export_float(model, batches[0], paths["float32"])
        _quantize_by_onnxruntime(paths["float32"], paths["MatMulNBitsQuantizer"])
        groups, candidates = mpq.targets.offer(mpq.targets.OnnxRuntime(), model, _options())
        with torch.no_grad():
            wanted = model(unseen).numpy()
        policy = mpq.BitPolicy({c.group: c.scheme for c in candidates}, {g.name: g.layers for g in groups})
        mpq.quantize(model, policy, batches, rounded=mpq.round_candidates(model, batches, groups, candidates))
        found = mpq.export_for("onnxruntime", model, paths["lightning_mpq"], batches[0][:2])
        rows = []
        for size in (1, 32):
            milliseconds = _times(paths, unseen[:size].numpy(), repeats)
            for way, path in paths.items():
                rows.append({
                    "model": name, "runtime": "onnxruntime", "way": way, "batch": size,
                    "milliseconds": milliseconds[way], "over_float32": milliseconds["float32"] / milliseconds[way],
                    "file_bytes": path.stat().st_size,
                    "promised_bytes": found.promised_bytes if way == "lightning_mpq" else None,
                    "squared_distance": _distance(path, unseen.numpy(), wanted),
                })  # fmt: skip
    return rows


def speeds(name: str, model: nn.Module, tokens: Tensor, repeats: int) -> list[Row]:
    """Return a row for each scheme and batch size: speed depends on bits and blocks, not on how weights were rounded.

    Args:
        name: What the model is called.
        model: Left as it was.
        tokens: [n, length], at least 32.
        repeats: How often each is run.
    """
    with TemporaryDirectory() as folder:
        paths = {"float32": Path(folder) / "float.onnx"}
        _export_float(model, tokens, paths["float32"])
        for bits, granularity in SCHEMES:
            scheme = mpq.WeightScheme(bits, granularity, "symmetric", "mse", "float16")  # type: ignore[arg-type]
            options = mpq.CandidateOptions(schemes=[scheme], keep_float=["*embeddings*"])
            groups, candidates = mpq.targets.offer(mpq.targets.OnnxRuntime(), model, options)
            policy = mpq.BitPolicy({c.group: c.scheme for c in candidates}, {g.name: g.layers for g in groups})
            packed = mpq.quantize(copy.deepcopy(model), policy)
            paths[str(scheme)] = Path(folder) / f"{len(paths)}.onnx"
            mpq.export_for("onnxruntime", packed, paths[str(scheme)], tokens[:2], verify=False)
        rows = []
        for size in (1, 32):
            found = _times(paths, tokens[:size].numpy(), repeats)
            rows += [
                {"model": name, "scheme": way, "batch": size, "milliseconds": found[way],
                 "over_float32": found["float32"] / found[way], "file_bytes": path.stat().st_size}
                for way, path in paths.items()
            ]  # fmt: skip
    return rows


def _options() -> mpq.CandidateOptions:
    """Return one scheme for all products, that of onnxruntime's quantizer; tables stay in float, as there."""
    scheme = mpq.WeightScheme(4, BLOCK, "symmetric", "moment", "float16", "second_order")
    return mpq.CandidateOptions(schemes=[scheme], keep_float=["*embeddings*"])


def _export_float(model: nn.Module, tokens: torch.Tensor, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sizes = ({0: torch.export.Dim("batch")},)
        torch.onnx.export(model, (tokens[:2],), str(path), dynamo=True, dynamic_shapes=sizes, external_data=False,
                          verbose=False)  # fmt: skip


def _quantize_by_onnxruntime(source: Path, path: Path) -> None:
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(onnx.load(source), block_size=BLOCK, is_symmetric=True, accuracy_level=4)
    quantizer.process()
    quantizer.model.save_model_to_file(str(path), use_external_data_format=False)


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _times(paths: dict[str, Path], tokens: np.ndarray[Any, Any], repeats: int) -> dict[str, float]:
    """Return milliseconds of processor time, the least of several runs in turns, one thread."""
    sessions = {way: _session(path) for way, path in paths.items()}
    found: dict[str, list[float]] = {way: [] for way in paths}
    for number in range(repeats + 1):
        for way, session in sessions.items():
            feed = {session.get_inputs()[0].name: tokens}
            start = time.process_time()
            session.run(None, feed)
            if number:
                found[way].append(1000 * (time.process_time() - start))
    return {way: min(times) for way, times in found.items()}


def _distance(path: Path, tokens: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any]) -> float:
    """Return the mean squared distance between unit embeddings and those of the float model."""
    session = _session(path)
    parts = [session.run(None, {session.get_inputs()[0].name: part})[0] for part in np.split(tokens, len(tokens) // 16)]
    return float(np.square(np.concatenate(parts) - wanted).sum(1).mean())
