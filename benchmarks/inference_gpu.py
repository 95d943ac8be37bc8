"""The same Linear layers on a GPU: absolute times, and bytes moved against what the memory can move."""

from __future__ import annotations

import copy
import warnings
from argparse import Namespace
from collections.abc import Callable, Mapping
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import nn

from lightning_mpq.modules import stored_bytes, use_kernels

from .inference_ways import packed_model, relative_error


def gpu_rows(shapes: Mapping[str, tuple[int, int]], arguments: Namespace, skipped: list[str]) -> list[dict[str, Any]]:
    """Return a row for each layer, width, batch and way; none, and the reason in ``skipped``, without a GPU."""
    if not torch.cuda.is_available():
        skipped.append("GPU: CUDA is not available")
        return []
    bandwidth = copy_bandwidth()
    rows = []
    for name, (outputs, inputs) in shapes.items():
        for dtype in (torch.float16, torch.bfloat16):
            dense = nn.Sequential(nn.Linear(inputs, outputs)).to("cuda", dtype).eval()
            for batch in arguments.batches:
                values = torch.randn(batch, inputs, device="cuda", dtype=dtype)
                for bits in arguments.bits:
                    packed = packed_model(dense.float(), bits).to(dtype)
                    dense.to(dtype)
                    kernel = copy.deepcopy(packed)
                    with warnings.catch_warnings(action="ignore"):
                        choice = use_kernels(kernel, "humming").choices[0]
                    nets = {"dense": dense, "plain": packed, "humming": kernel}
                    if choice.kernel != "humming":
                        skipped.append(f"{name}, {bits} bits: {choice.why}")
                        del nets["humming"]
                    for way, net in nets.items():
                        with torch.no_grad():
                            seconds = gpu_seconds(partial(net, values))
                            error = None if way == "dense" else relative_error(net(values), packed(values))
                        moved = stored_bytes(net).total + (values.numel() + batch * outputs) * values.element_size()
                        rows.append(
                            {
                                "model": name,
                                "device": torch.cuda.get_device_name(),
                                "dtype": str(dtype)[6:],
                                "bits": bits,
                                "batch": batch,
                                "way": way,
                                "stored_bytes": stored_bytes(net).total,
                                "microseconds": round(seconds * 1e6, 2),
                                "relative_error": error,
                                "bytes_moved": moved,
                                "of_copy_bandwidth": round(moved / seconds / bandwidth, 3),
                            }  # fmt: skip
                        )
    return rows


def gpu_seconds(call: Callable[[], Any], repeats: int = 50) -> float:
    """Return the median time of a call by CUDA events, after a warm-up that also compiles."""
    for _ in range(5):
        call()
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return median(times)


def copy_bandwidth(size: int = 2**29) -> float:
    """Return the bytes a second that a copy within the GPU's memory reads and writes."""
    source = torch.empty(size, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * size / gpu_seconds(lambda: target.copy_(source))
