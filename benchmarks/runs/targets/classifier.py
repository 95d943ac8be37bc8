"""EfficientNet-Lite0 in onnxruntime and OpenVINO: the float network, their own quantizers of 8 by 8 bits, our files."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

import lightning_mpq as mpq
from lightning_mpq.targets.openvino import GRAPH_NAME

from ...methods.onnxruntime_files import export_float, quantize_statically
from ...recorded_instances.pretrained import efficientnet_lite0
from ...tools.quality import of_classes
from ...tools.results import Row
from .onnx_encoder import session_of
from .openvino_encoder import compiled
from .timing import milliseconds, outputs

FLOAT, EIGHT, SEVEN, NNCF = "float32", "quantize_static", "quantize_static, 7 of 8 bits", "NNCF"
OWN = "lightning_mpq, 7 bits, inputs of 8"
BITS, INPUTS = 7, 8
"""With weights of 8 bits two products do not fit the 16 bits that processors without VNNI add them up in."""


def measure(samples: int, held_out: int, repeats: int, runtime: str) -> Iterator[Row]:
    """Yield a row for each way and batch size.

    Crops of every third picture are kept apart, so that nothing was fitted to the pictures that are judged.

    Args:
        samples: Crops to calibrate on, twice as many as ``held_out``.
        held_out: Crops to judge by, at least 32 and a multiple of 16.
        repeats: How often each is run.
        runtime: ``"onnxruntime"`` or ``"openvino"``.
    """
    network, batches, _ = efficientnet_lite0(Path(), samples + held_out)
    crops = torch.cat(batches)
    apart = torch.arange(len(crops)) % 3 == 2
    yield from rows("efficientnet_lite0", network, crops[~apart], crops[apart], repeats, runtime)


def rows(
    name: str, network: nn.Module, calibration: Tensor, unseen: Tensor, repeats: int, runtime: str
) -> Iterator[Row]:
    """Yield the rows of any network of classes; for the arguments see `measure`."""
    with torch.no_grad():
        wanted = [network(part) for part in unseen.split(16)]
    with TemporaryDirectory() as folder:
        paths = FILES[runtime](network, list(calibration.split(16)), Path(folder))
        runs = {way: (compiled if path.name == GRAPH_NAME else session_of)(path) for way, path in paths.items()}
        quality = {
            way: of_classes(wanted, torch.from_numpy(outputs(run, unseen.numpy())).split(16), ())
            for way, run in runs.items()
        }
        for size in (1, 32):
            found = milliseconds(runs, unseen[:size].numpy(), repeats)
            for way, path in paths.items():
                yield {
                    "model": name, "runtime": runtime, "way": way, "batch": size, "milliseconds": found[way],
                    "over_float32": found[FLOAT] / found[way],
                    "file_bytes": _bytes(path), **quality[way],
                }  # fmt: skip


def in_onnxruntime(network: nn.Module, batches: list[Tensor], folder: Path) -> Mapping[str, Path]:
    """Write all files of onnxruntime."""
    paths = {FLOAT: folder / "float.onnx"}
    export_float(network, batches[0], paths[FLOAT])
    for way, reduced in ((EIGHT, False), (SEVEN, True)):
        paths[way] = quantize_statically(paths[FLOAT], batches, _apart(folder, way), reduce_range=reduced)
    return paths | {OWN: _write_own(network, batches, _apart(folder, OWN))}


def in_openvino(network: nn.Module, batches: list[Tensor], folder: Path) -> Mapping[str, Path]:
    """Write all files of OpenVINO; ours is what it reads of the ONNX file, saved as its own."""
    import nncf
    import openvino

    source = folder / "float.onnx"
    export_float(network, batches[0], source)
    read = openvino.Core().read_model
    images = nncf.Dataset([batch.numpy() for batch in batches])
    own = _write_own(network, batches, folder / "own.onnx")
    models = {FLOAT: read(source), NNCF: nncf.quantize(read(source), images), OWN: read(own)}
    paths = {way: folder / way / GRAPH_NAME for way in models}
    for way, model in models.items():
        openvino.save_model(model, paths[way], compress_to_fp16=False)
    return paths


FILES = {"onnxruntime": in_onnxruntime, "openvino": in_openvino}


def _apart(folder: Path, way: str) -> Path:
    """Return a file in a folder of its own, where onnxruntime may leave others."""
    (folder / way).mkdir()
    return folder / way / "model.onnx"


def _write_own(network: nn.Module, batches: list[Tensor], path: Path) -> Path:
    """Write our file, symmetric, a scale a channel."""
    groups = mpq.find_groups(network)
    offered = mpq.make_candidates(groups, [BITS], granularities=["channel"], grids=["symmetric"], inputs=[INPUTS])
    rounded = mpq.round_candidates(network, batches, groups, offered)
    policy = mpq.BitPolicy({c.group: c.scheme for c in rounded.candidates}, {g.name: g.layers for g in groups})
    packed = mpq.quantize(copy.deepcopy(network), policy, batches, rounded=rounded)
    mpq.export_onnx(packed, path, batches[0][:2])
    return path


def _bytes(path: Path) -> int:
    weights = [path.with_suffix(".bin")] if path.name == GRAPH_NAME else []
    return sum(file.stat().st_size for file in (path, *weights))
