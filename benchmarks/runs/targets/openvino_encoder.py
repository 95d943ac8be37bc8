"""An encoder in OpenVINO: the float model, weights compressed by NNCF, and our files, at the same bytes."""

from __future__ import annotations

import copy
import os
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

import lightning_mpq as mpq
from lightning_mpq.targets.openvino import GRAPH_NAME

from ...methods.onnxruntime_files import export_float
from ...tools.results import Row
from .onnx_encoder import BLOCK
from .timing import Run, milliseconds, outputs


def measure(name: str, model: nn.Module, calibration: Tensor, unseen: Tensor, repeats: int) -> list[Row]:
    """Return a row for each way and batch size; arguments are those of `onnx_encoder.measure`."""
    import openvino

    with torch.no_grad():
        wanted = model(unseen).numpy()
    with TemporaryDirectory() as folder:
        export_float(model, calibration, Path(folder) / "float.onnx")
        read = partial(openvino.Core().read_model, Path(folder) / "float.onnx")
        paths = {"float32": Path(folder) / "float32"}
        openvino.save_model(read(), paths["float32"] / GRAPH_NAME, compress_to_fp16=False)
        paths["NNCF"] = Path(folder) / "peer"
        openvino.save_model(_compressed(read()), paths["NNCF"] / GRAPH_NAME, compress_to_fp16=False)
        paths["lightning_mpq"] = Path(folder) / "own"
        promised = _write_own(model, calibration, paths["lightning_mpq"])
        runs = {way: compiled(path / GRAPH_NAME) for way, path in paths.items()}
        distances = {way: _distance(run, unseen.numpy(), wanted) for way, run in runs.items()}
        rows = []
        for size in (1, 32):
            found = milliseconds(runs, unseen[:size].numpy(), repeats)
            for way, path in paths.items():
                rows.append({
                    "model": name, "runtime": "openvino", "way": way, "batch": size, "milliseconds": found[way],
                    "over_float32": found["float32"] / found[way],
                    "file_bytes": sum(file.stat().st_size for file in path.glob("model.*")),
                    "promised_bytes": promised if way == "lightning_mpq" else None, "squared_distance": distances[way],
                })  # fmt: skip
    return rows


def _compressed(read: Any) -> Any:
    """Return products in 4 bits, symmetric, in blocks; tables stay in float."""
    import nncf

    return nncf.compress_weights(
        read, mode=nncf.CompressWeightsMode.INT4_SYM, group_size=BLOCK, ratio=1.0, all_layers=True,
        ignored_scope=nncf.IgnoredScope(types=["Gather"], validate=False), backup_mode=nncf.BackupMode.NONE,
    )  # fmt: skip


def _write_own(model: nn.Module, calibration: Tensor, path: Path) -> int:
    """Write our file and return the bytes that were promised."""
    scheme = mpq.WeightScheme(4, BLOCK, "symmetric", "moment", "float16", "second_order")
    target, batches = mpq.targets.OpenVino(), list(calibration.split(16))
    options = mpq.CandidateOptions(schemes=[scheme], keep_float=["*embeddings*"])
    groups, _ = mpq.targets.offer(target, model, options)
    policy = mpq.BitPolicy({group.name: scheme for group in groups}, {group.name: group.layers for group in groups})
    packed = mpq.quantize(copy.deepcopy(model), policy, batches)
    return mpq.export_for(target, packed, path, batches[0][:2], verify=False).promised_bytes


def compiled(path: Path) -> Run:
    """Return what computes a file as OpenVINO does by default, on one thread."""
    import openvino

    os.environ.pop("ONEDNN_MAX_CPU_ISA", None)  # it has no kernel for packed weights below AVX2
    config = {"INFERENCE_NUM_THREADS": "1", "NUM_STREAMS": "1"}
    model = openvino.Core().compile_model(openvino.Core().read_model(path), "CPU", config)
    return lambda inputs: np.array(model({0: inputs})[0])


def _distance(run: Run, tokens: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> float:
    """Return the mean squared distance between unit embeddings and those of the float model."""
    return float(np.square(outputs(run, tokens) - wanted).sum(1).mean())
