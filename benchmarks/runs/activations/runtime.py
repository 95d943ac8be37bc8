"""In onnxruntime: the float network, packed layers that multiply integers, and its own static quantization."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor, nn

import lightning_mpq as mpq

from ...methods.onnxruntime_files import Session, export_float, quantize_statically
from ...tools.accuracy import Images, compare, outputs

WEIGHTS = (8, 7)
"""Widths that are written; with the latter two products fit 16 bits, which processors without VNNI add them up in."""
OWN = "onnxruntime's own"


def written(network: nn.Module, calibration: list[Tensor], folder: Path) -> dict[str, tuple[Path, int]]:
    """Write a float network and its forms with inputs of 8 bits; return each file and its operations on integers."""
    files = {"float": (folder / "float.onnx", 0)}
    export_float(network, calibration[0], files["float"][0])
    for bits in WEIGHTS:
        groups = mpq.find_groups(network)
        candidates = mpq.make_candidates(groups, [bits], grids=["symmetric"], inputs=[8])
        rounded = mpq.round_candidates(network, calibration, groups, candidates)
        policy = mpq.BitPolicy({c.group: c.scheme for c in rounded.candidates})
        packed = mpq.quantize(copy.deepcopy(network), policy, calibration, rounded=rounded)
        path = folder / f"W{bits}A8.onnx"
        files[f"W{bits}A8"] = path, mpq.export_onnx(packed, path, calibration[0][:2]).integers
    files[OWN] = quantize_statically(files["float"][0], calibration, folder / "own.onnx"), 0
    return files


def quality(network: nn.Module, calibration: Images, test: Images) -> Iterator[dict[str, Any]]:
    """Yield accuracy and divergence of each file on test images, computed by onnxruntime."""
    reference, _ = outputs(network, test)
    with TemporaryDirectory() as folder:
        for name, (path, _) in written(network, [images for images, _ in calibration], Path(folder)).items():
            yield {"file": name, **compare(Session(path), test, reference)}


def times(network: nn.Module, images: Tensor, repeats: int) -> Iterator[dict[str, Any]]:
    """Yield milliseconds of a batch of 1 and of 64 images by each file, all in turn, on one thread.

    What is said to be as many times as fast is the median of the ratios within each turn: a processor that changes its
    speed, or is shared, changes it for all files of a turn alike.

    Args:
        network: A float network.
        images: At least 64, [N, C, H, W].
        repeats: How often each is run.
    """
    with TemporaryDirectory() as folder:
        files = written(network, [images], Path(folder))
        sessions = {name: Session(path) for name, (path, _) in files.items()}
        for size in (1, 64):
            found: dict[str, list[float]] = {}
            for _ in range(repeats):
                for name, session in sessions.items():
                    start = time.perf_counter()
                    session(images[:size])
                    found.setdefault(name, []).append(1000 * (time.perf_counter() - start))
            for name, (path, integers) in files.items():
                ratios = [own / other for own, other in zip(found["float"], found[name], strict=True)]
                yield {
                    "batch": size, "file": name, "ms": median(found[name]), "speedup": median(ratios),
                    "operations_of_integers": integers, "bytes": path.stat().st_size,
                }  # fmt: skip
