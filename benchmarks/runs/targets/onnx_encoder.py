"""An encoder in onnxruntime: the float model, onnxruntime's own quantizers, and our files, at the same bytes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

import lightning_mpq as mpq

from ...methods.onnxruntime_files import Session, export_float
from ...tools.results import Row
from .timing import Run, milliseconds, outputs

BLOCK = 32
OWN: tuple[tuple[int, int | str], ...] = ((4, BLOCK), (4, "channel"), (7, "channel"))
"""Bits and granularity of our files: in blocks, and with one scale a row, which are products of integers."""


def measure(name: str, model: nn.Module, calibration: Tensor, unseen: Tensor, repeats: int) -> list[Row]:
    """Return a row for each way and batch size.

    Args:
        name: What the model is called.
        model: Makes unit vectors of token numbers; left as it was.
        calibration: [n, length], what is rounded by.
        unseen: [n, length], what is judged by, at least 32.
        repeats: How often each is run.
    """
    batches = list(calibration.split(16))
    with torch.no_grad():
        wanted = model(unseen).numpy()
    with TemporaryDirectory() as folder:
        paths = {"float32": Path(folder) / "float.onnx"}
        export_float(model, batches[0], paths["float32"])
        for way, quantize in (("MatMulNBitsQuantizer", _by_blocks), ("quantize_dynamic", _dynamically)):
            paths[way] = Path(folder) / f"{way}.onnx"
            quantize(paths["float32"], paths[way])
        promised = _write_own(model, batches, paths, Path(folder))
        runs = {way: session_of(path) for way, path in paths.items()}
        distances = {way: _distance(run, unseen.numpy(), wanted) for way, run in runs.items()}
        rows = []
        for size in (1, 32):
            found = milliseconds(runs, unseen[:size].numpy(), repeats)
            for way, path in paths.items():
                rows.append({
                    "model": name, "runtime": "onnxruntime", "way": way, "batch": size,
                    "milliseconds": found[way], "over_float32": found["float32"] / found[way],
                    "file_bytes": path.stat().st_size, "promised_bytes": promised.get(way),
                    "squared_distance": distances[way],
                })  # fmt: skip
    return rows


def own_way(bits: int, granularity: int | str) -> str:
    """Return what a file of ours is called."""
    return f"lightning_mpq, {bits} bits, {'a scale a row' if granularity == 'channel' else f'blocks of {granularity}'}"


def _write_own(model: nn.Module, batches: list[Tensor], paths: dict[str, Path], folder: Path) -> Mapping[str, int]:
    """Write our files, tables in float as the peers leave them; return the bytes that were promised."""
    schemes = [
        mpq.WeightScheme(bits, granularity, "symmetric", "moment", "float16", "second_order")  # type: ignore[arg-type]
        for bits, granularity in OWN
    ]
    target = mpq.targets.OnnxRuntime()
    options = mpq.CandidateOptions(schemes=schemes, keep_float=["*embeddings*"])
    groups, _ = mpq.targets.offer(target, model, options)
    promised = {}
    for (bits, granularity), scheme in zip(OWN, schemes, strict=True):
        way = own_way(bits, granularity)
        paths[way] = folder / f"own-{bits}-{granularity}.onnx"
        policy = mpq.BitPolicy({group.name: scheme for group in groups}, {group.name: group.layers for group in groups})
        packed = mpq.quantize(copy.deepcopy(model), policy, batches)
        promised[way] = mpq.export_for(target, packed, paths[way], batches[0][:2]).promised_bytes
    return promised


def _by_blocks(source: Path, path: Path) -> None:
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(onnx.load(source), block_size=BLOCK, is_symmetric=True, accuracy_level=4)
    quantizer.process()
    quantizer.model.save_model_to_file(str(path), use_external_data_format=False)


def _dynamically(source: Path, path: Path) -> None:
    """Quantize products as its documentation advises for processors without VNNI: by 7 bits of 8, row by row."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(source, path, op_types_to_quantize=["MatMul"], per_channel=True, reduce_range=True,
                     weight_type=QuantType.QInt8, extra_options={"MatMulConstBOnly": True})  # fmt: skip


def session_of(path: Path) -> Run:
    """Return what computes a file on one thread."""
    session = Session(path)
    return lambda inputs: session(torch.from_numpy(inputs)).numpy()


def _distance(run: Run, tokens: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> float:
    """Return the mean squared distance between unit embeddings and those of the float model."""
    return float(np.square(outputs(run, tokens) - wanted).sum(1).mean())
