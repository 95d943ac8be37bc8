"""Whole jobs and kernels on one GPU, within the time that a machine is lent for.

    python -m benchmarks.runs.gpu [--minutes 13] [--models resnet50 vit_b 1B 8B]
    python -m benchmarks.runs.gpu --tiny        # on any processor, in a minute: small models, no kernels

Random weights in bfloat16: what a job takes does not depend on them. Of 8B, two blocks are measured; others are like
them. A stage that would begin after the time is over is left out, and said so in ``skipped``.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

import lightning_mpq as mpq
from lightning_mpq.network.calibration import Calibration
from lightning_mpq.pipeline.kept_rounding import KeptRounding

from ..methods.inference.on_gpu import copy_bandwidth, measure
from ..problems.llama import random_llama, random_tokens
from ..problems.vision_shapes import random_classifier, random_images
from ..tools.environment import PACKAGES
from ..tools.results import Row, write_results

MODELS = ("resnet50", "vit_b", "1B", "8B")
BLOCKS = {"8B": 2}
KERNELS = ((1024, 4096), (4096, 4096))


class Clock:
    """Knows when the machine is to be given back.

    Attributes:
        skipped: What was left out, and why.
    """

    def __init__(self, minutes: float) -> None:
        """Start."""
        self.end, self.skipped = time.monotonic() + 60 * minutes, list[str]()

    def is_over(self, name: str) -> bool:
        """Tell whether there is no time left, and note what is left out then."""
        if time.monotonic() < self.end:
            return False
        self.skipped.append(f"{name}: no time left")
        return True


def main(words: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, print and write."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.runs.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help="small models on the processor, to see that all runs")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--minutes", type=float, default=13.0)
    parser.add_argument("--widths", nargs="+", type=int, default=[2, 3, 4, 8])
    parser.add_argument("--output", type=Path, help="file to write; default benchmarks/results/gpu.json")
    arguments = parser.parse_args(words)
    device = "cuda" if torch.cuda.is_available() and not arguments.tiny else "cpu"
    if device == "cpu" and not arguments.tiny:
        parser.error("there is no GPU that CUDA can use; --tiny runs small models on the processor.")
    warnings.simplefilter("ignore")
    clock, bandwidth, rows = Clock(arguments.minutes), None, list[Row]()
    for name in arguments.models:
        rows += jobs(name, device, arguments.tiny, arguments.widths, clock)
    kernels: list[Row] = []
    if device == "cuda" and not clock.is_over("kernels"):
        bandwidth = copy_bandwidth()
        kernels = [row for size in KERNELS for bits in (3, 4, 8) for row in measure(*size, bits, (1, 64), bandwidth)]
    settings = {"tiny": arguments.tiny, "widths": arguments.widths, "bandwidth": bandwidth, "skipped": clock.skipped}
    output = arguments.output or (Path("outputs/quick/gpu.json") if arguments.tiny else None)
    packages = (*PACKAGES, "transformers", "humming-kernels")
    path = write_results("gpu", settings=settings, results=rows, kernels=kernels, output=output, packages=packages)
    print(f"written to {path}")


def jobs(name: str, device: str, tiny: bool, widths: Sequence[int], clock: Clock) -> Iterator[Row]:
    """Yield a row for each stage of a job on one model: seconds by the wall, and the most memory of the device."""
    if clock.is_over(name):
        return
    model, data = problem(name, device, tiny)
    own = next(model.parameters())
    facts: Row = {"model": name, "dtype": str(own.dtype).removeprefix("torch."), "device": device}
    facts["weights"] = sum(parameter.numel() for parameter in model.parameters())
    facts["weight_bytes"] = facts["weights"] * own.element_size()

    @contextmanager
    def stage(kind: str) -> Iterator[None]:
        if device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        yield
        if device == "cuda":
            torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() if device == "cuda" else None
        found = {"stage": kind, "seconds": round(time.perf_counter() - start, 3), "peak_bytes": peak}
        made.append(facts | found)
        print(made[-1], flush=True)

    made: list[Row] = []
    options = mpq.CandidateOptions(bits=tuple(widths), granularities=("channel",), grids=("symmetric",))
    curvature = mpq.CurvatureOptions(likelihood=mpq.Categorical(class_dim=-1))
    with tempfile.TemporaryDirectory() as folder:
        with stage("estimate"):
            found = mpq.estimate(model, data, candidates=options, curvature=curvature, cache_dir=folder)
        with stage("round"):
            kept = KeptRounding(folder, Calibration.of(model, data))
            groups = mpq.find_groups(model)
            rounded = mpq.round_candidates(model, data, groups, options.candidates(groups), kept=kept)
        if not clock.is_over(f"{name}, profile"):
            with stage("profile"):
                taylor = mpq.profile(model, data, groups=groups, rounded=rounded, likelihood=curvature.likelihood)
            with stage("allocate"):
                policy = mpq.allocate(taylor, mpq.Budget(average_bits=4.0)).policy
            if not clock.is_over(f"{name}, quantize"):
                with stage("quantize"):
                    mpq.quantize(model, policy, data, rounded=rounded)
        del rounded
    expected = {each.name: {"estimated_bytes": each.bytes, "estimated_minutes": each.minutes} for each in found.stages}
    yield from (row | expected.get(row["stage"], {}) for row in made)


def problem(name: str, device: str, tiny: bool) -> tuple[nn.Module, list[Any]]:
    """Return a model and its batches."""
    dtype = torch.float32 if tiny else torch.bfloat16
    if name in ("resnet50", "vit_b"):
        batches, samples = (1, 2) if tiny else (4, 32)
        return random_classifier(name, dtype, device, tiny), random_images(batches, samples, dtype, device)
    shape = "tiny" if tiny else name
    sizes = (1, 2, 8) if tiny else (8, 4, 512)
    return random_llama(shape, dtype, device, BLOCKS.get(shape)), random_tokens(shape, *sizes, device)


if __name__ == "__main__":
    main()
