"""Time in onnxruntime: the float network against packed layers that multiply integers."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

import lightning_mpq as mpq


def times(network: nn.Module, images: torch.Tensor, repeats: int) -> Iterator[dict[str, Any]]:
    """Yield milliseconds a batch of 1 and of 64 images, the least of several; both networks in turn, one thread.

    Args:
        network: A float network.
        images: At least 64, [N, C, H, W].
        repeats: How often each is run.
    """
    import onnxruntime

    groups = mpq.find_groups(network)
    candidates = mpq.make_candidates(groups, [8], rounding="nearest", grids=["symmetric"], inputs=[8])
    policy = mpq.BitPolicy({c.group: c.scheme for c in candidates})
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    with TemporaryDirectory() as folder:
        float_file, packed_file = Path(folder) / "float.onnx", Path(folder) / "packed.onnx"
        batch = torch.export.Dim("batch")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                network, (images[:2],), str(float_file), dynamo=True, dynamic_shapes=({0: batch},), verbose=False
            )
        export = mpq.export_onnx(mpq.quantize(network, policy, [images]), packed_file, images[:2])
        sessions = {
            name: onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            for name, path in (("float", float_file), ("integers", packed_file))
        }
        for size in (1, 64):
            found: dict[str, list[float]] = {}
            for _ in range(repeats):
                for name, session in sessions.items():
                    feed = {session.get_inputs()[0].name: images[:size].numpy()}
                    start = time.perf_counter()
                    session.run(None, feed)
                    found.setdefault(name, []).append(1000 * (time.perf_counter() - start))
            least = {name: min(values) for name, values in found.items()}
            yield {
                "batch": size, "float_ms": least["float"], "integers_ms": least["integers"],
                "speedup": least["float"] / least["integers"], "operations_of_integers": export.integers,
                "float_bytes": float_file.stat().st_size, "bytes": export.file_bytes, "error": export.error,
            }  # fmt: skip
