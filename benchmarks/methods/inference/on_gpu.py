"""One Linear layer on a GPU: absolute times, and bytes moved against what the memory can move."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import nn

from lightning_mpq import use_kernels
from lightning_mpq.modules import stored_bytes

from ...problems.inference_models import packed_model
from ...tools.results import Row
from .way import relative_error

DTYPES = (torch.float16, torch.bfloat16)


@torch.no_grad()
def measure(outputs: int, inputs: int, bits: int, batches: Sequence[int], bandwidth: float) -> Iterator[Row]:
    """Yield a row for each type, batch and way, or why a way was left out.

    Args:
        outputs: Rows of the weight.
        inputs: Its columns.
        bits: Its width.
        batches: Samples of a call.
        bandwidth: What `copy_bandwidth` returned.
    """
    name = f"linear-{outputs}x{inputs}"
    for dtype in DTYPES:
        layer = nn.Sequential(nn.Linear(inputs, outputs)).eval()
        packed = packed_model(layer, bits).to("cuda", dtype)
        nets = {"dense": layer.to("cuda", dtype), "plain": packed, "humming": copy.deepcopy(packed)}
        with warnings.catch_warnings(action="ignore"):
            choice = use_kernels(nets["humming"], "humming").choices[0]
        if choice.kernel != "humming":
            yield {"skipped": f"{name}, {bits} bits: {choice.why}"}
            del nets["humming"]
        for batch in batches:
            values = torch.randn(batch, inputs, device="cuda", dtype=dtype)
            for way, net in nets.items():
                seconds = gpu_seconds(partial(net, values))
                stored = stored_bytes(net).total
                moved = stored + (values.numel() + batch * outputs) * values.element_size()
                yield {
                    "model": name,
                    "dtype": str(dtype).removeprefix("torch."),
                    "bits": bits,
                    "batch": batch,
                    "way": way,
                    "stored_bytes": stored,
                    "microseconds": round(seconds * 1e6, 2),
                    "relative_error": None if way == "dense" else relative_error(net(values), packed(values)),
                    "bytes_moved": moved,
                    "of_copy_bandwidth": round(moved / seconds / bandwidth, 3),
                }


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
