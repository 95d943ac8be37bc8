"""How fast and how small packed models run: our kernels, torchao and onnxruntime against float32 and bfloat16.

Linear layers (outputs x inputs) and the ResNet-20, at 2 to 8 bits and batches of 1 and 64. All ways of one width and
batch are timed in turns in one process, so that a ratio compares what ran side by side; times are medians.

    python -m benchmarks.inference --threads 2
    python -m benchmarks.inference --quick
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from .common import PACKAGES, Demand, write_results
from .inference_gpu import gpu_rows
from .inference_models import MODELS, linear_shape, make_inputs, make_model
from .inference_ways import Way, float_ways, onnxruntime_ways, packed_model, packed_ways, torchao_way
from .memory import transient_bytes
from .parts import part

PEERS = ("auto-round-lib", "torchao", "onnxruntime", "onnx", "humming-kernels")
UNCOUNTED, COUNTED = 3, 8
"""Calls of a way in each of its turns: the first find other weights in the cache and the threads asleep."""


def time_in_turns(ways: Sequence[Way], seconds: float) -> dict[str, float]:
    """Call all ways in turns, each several times, until ``seconds`` have passed for each on average.

    Args:
        ways: What is timed.
        seconds: Time spent on each; every way has at least three turns.

    Returns:
        Name to the median time of a call in seconds.
    """
    times: dict[str, list[float]] = {way.name: [] for way in ways}
    end = time.perf_counter() + seconds * len(ways)
    turns = 0
    while turns < 3 or time.perf_counter() < end:
        turns += 1
        for way in ways:
            for _ in range(UNCOUNTED):
                way.call()
            for _ in range(COUNTED):
                start = time.perf_counter()
                way.call()
                times[way.name].append(time.perf_counter() - start)
    return {name: median(taken) for name, taken in times.items()}


@lru_cache(maxsize=1)
def models(name: str, bits: int) -> tuple[nn.Module, nn.Module]:
    """Return the float model and the packed one, which batches of different sizes share."""
    model = make_model(name)
    return model, packed_model(model, bits)


@torch.no_grad()
def measure(name: str, batch: int, bits: int, seconds: float, threads: int) -> list[dict[str, Any]]:
    """Return one row for each way to run a model at a batch and a width, and one for each way that cannot run it."""
    skipped: list[str] = []
    model, packed = models(name, bits)
    inputs = make_inputs(name, batch)
    ways = [
        *float_ways(model, inputs),
        *packed_ways(packed, bits, inputs, skipped),
        *torchao_way(model, bits, inputs, skipped),
        *onnxruntime_ways(packed, bits, inputs, threads, skipped),
    ]
    times = time_in_turns(ways, seconds)
    rows = []
    for way in ways:
        transient = transient_bytes(way.call)
        known = transient is not None and way.held is not None
        rows.append(
            {
                "model": name,
                "bits": bits,
                "batch": batch,
                "way": way.name,
                "stored_bytes": way.stored,
                "held_bytes": way.held,
                "peak_bytes": (way.held or 0) + (transient or 0) if known else None,
                "microseconds": round(times[way.name] * 1e6, 1),
                "over_float32": round(times["float32"] / times[way.name], 3),
                "over_bfloat16": round(times["bfloat16"] / times[way.name], 3),
                "relative_error": way.error,
                "note": way.note,
            }
        )
    return [*rows, *({"skipped": reason} for reason in skipped)]


def demands_of(rows: Sequence[dict[str, Any]]) -> list[Demand]:
    """Return the demanded figures that these rows can answer."""
    found = []
    for model, place in (("12 x linear-1024x4096", "from memory"), ("linear-1024x4096", "in the cache")):
        of_model = [row for row in rows if row["model"] == model]
        for way, batch, widths, bound in (
            ("auto-round, float32", 1, range(2, 9), 1.5),
            ("auto-round, float32", 64, range(2, 9), 1.0),
            ("onnxruntime", 1, (2, 4, 8), 8.0),
        ):
            for bits in widths:
                wanted = (way, batch, bits)
                ratios = [r["over_float32"] for r in of_model if (r["way"], r["batch"], r["bits"]) == wanted]
                if ratios:
                    title = f"{way}, {model}, weights {place}, batch {batch}, {bits} bits, times float32"
                    found.append(Demand(title, f">= {bound}", ratios[0], ratios[0] >= bound))
    return found


def table_of(rows: Sequence[dict[str, Any]]) -> Table:
    """Return the rows as a table."""
    table = Table("model", "bits", "batch", "way", "stored KiB", "peak KiB", "µs", "x float32", "x bfloat16", "error")
    for row in rows:
        kib = [f"{value / 1024:,.0f}" if value else "" for value in (row["stored_bytes"], row["peak_bytes"])]
        error = "" if row["relative_error"] is None else f"{row['relative_error']:.0e}"
        ratios = (f"{row['over_float32']:.2f}", f"{row['over_bfloat16']:.2f}", error)
        cells = (row["model"], str(row["bits"]), str(row["batch"]), row["way"])
        table.add_row(*cells, *kib, f"{row['microseconds']:,.0f}", *ratios)
    return table


def main() -> None:
    """Measure, print a table and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--bits", nargs="+", type=int, choices=range(2, 9), default=list(range(2, 9)))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 64])
    parser.add_argument("--seconds", type=float, default=0.5, help="time spent on each way to run a model")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="one layer, two widths, a tenth of a second each")
    parser.add_argument("--output", type=Path, help="result file; default benchmarks/results/inference.json")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.models, arguments.bits, arguments.seconds = ["linear-1024x4096"], [3, 8], 0.1
    torch.set_num_threads(arguments.threads)
    measured = [
        row
        for name, bits, batch in product(arguments.models, arguments.bits, arguments.batches)
        for row in part(
            "inference",
            f"{name.replace(' ', '-')}-batch{batch}-{bits}bits-{arguments.threads}threads-{arguments.seconds:g}s",
            partial(measure, name, batch, bits, arguments.seconds, arguments.threads),
        )
    ]
    rows = [row for row in measured if "skipped" not in row]
    skipped = [row["skipped"] for row in measured if "skipped" in row]
    shapes = {name: shape[1:] for name in arguments.models if (shape := linear_shape(name)) and shape[0] == 1}
    on_gpu = gpu_rows(shapes, arguments, skipped)
    Console(width=150).print(table_of(rows))
    demands = demands_of(rows)
    for demand in demands:
        print(f"{'met    ' if demand.met else 'NOT MET'} {demand.name}: {demand.measured} (demanded {demand.demanded})")
    for reason in dict.fromkeys(skipped):
        print("skipped:", reason)
    settings = {
        "seconds": arguments.seconds,
        "threads": arguments.threads,
        "clock": f"wall time, medians of calls in turns: {UNCOUNTED} uncounted, {COUNTED} counted",
        "scheme": "default_scheme(bits), rounded to nearest",
        "skipped": list(dict.fromkeys(skipped)),
    }
    # A quick look must not take the place of the real results.
    output = arguments.output or (Path("outputs/inference-quick.json") if arguments.quick else None)
    results = [*rows, *on_gpu]
    packages = (*PACKAGES, *PEERS)
    path = write_results(
        "inference", settings=settings, results=results, demands=demands, output=output, packages=packages
    )
    print(path)


if __name__ == "__main__":
    main()
