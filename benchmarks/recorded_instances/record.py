"""Record the Taylor model of a pretrained network: ``python -m benchmarks.recorded_instances.record --help``.

Only sums are kept: curvature and standard errors before shrinkage, and what each candidate stores.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path

import torch

from lightning_mpq import Calibration, TaylorModel, find_groups, make_candidates, profile, round_candidates

from .files import FOLDER, store
from .pretrained import NETWORKS


def record(network: str, rounding: str, samples: int, texts: Path, statistics: str, draws: int | None) -> TaylorModel:
    """Return the measured Taylor model of a network, not shrunk."""
    net, batches, likelihood = NETWORKS[network](texts, samples)
    calibration = Calibration(net, batches, likelihood=likelihood)
    groups = find_groups(net)
    granularity: str | int = 32 if network == "smollm2" else "channel"  # its file holds blocks of 32
    offered = make_candidates(groups, rounding=rounding, granularities=[granularity])  # type: ignore[arg-type]
    began = time.process_time()
    rounded = round_candidates(net, calibration, groups, offered, progress=_say)
    _say(1.0, f"rounded in {time.process_time() - began:.0f} s of processor time")
    return profile(
        net,
        calibration,
        groups=groups,
        rounded=rounded,
        statistics=statistics,  # type: ignore[arg-type]
        draws=draws,
        shrink=False,
        progress=_say,
    )


def _say(fraction: float, message: str) -> None:
    print(f"{fraction:6.1%} {message}", flush=True)


def main() -> None:
    """Record one network from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", choices=sorted(NETWORKS))
    parser.add_argument("--texts", type=Path, required=True, help="folder of html files")
    parser.add_argument("--samples", type=int, default=256, help="calibration samples")
    parser.add_argument("--rounding", choices=("nearest", "second_order"), default="nearest")
    parser.add_argument("--statistics", choices=("auto", "frozen", "reestimated"), default="auto")
    parser.add_argument("--draws", type=int, default=None)
    parser.add_argument("--output", type=Path, default=None, help="an .npz file; NETWORK-ROUNDING.npz beside this one")
    parser.add_argument("--whole", type=Path, default=None, help="also write the whole Taylor model there")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    began = time.process_time()
    taylor = record(
        arguments.network,
        arguments.rounding,
        arguments.samples,
        arguments.texts,
        arguments.statistics,
        arguments.draws,
    )
    if arguments.whole is not None:
        taylor.save(arguments.whole)
    path = arguments.output or FOLDER / f"{arguments.network}-{arguments.rounding}.npz"
    store(taylor, path)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{taylor!r} in {time.process_time() - began:.0f} s of processor time, peak {peak:.1f} GiB")
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
