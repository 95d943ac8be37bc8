"""With what a job was done: versions, seeds, hashes and memory, for whoever does it again."""

from __future__ import annotations

import hashlib
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from ..curvature import TaylorModel
from ..options import CurvatureOptions, SolverOptions
from ..policy import BitPolicy

_PACKAGES = ("lightning_mpq", "torch", "lightning", "mip", "highspy", "numpy", "scipy")


def receipt(
    taylor: TaylorModel, policy: BitPolicy, curvature: CurvatureOptions, solver: SolverOptions
) -> dict[str, Any]:
    """Return plain values.

    Args:
        taylor: The model that was solved; it has hashes of weights, data and settings.
        policy: The chosen policy.
        curvature: How the loss was measured.
        solver: How the bits were assigned.
    """
    batches = hashlib.sha256("".join(taylor.batch_hashes).encode()).hexdigest() if taylor.batch_hashes else ""
    hashes = {
        "weights, candidates and settings": taylor.settings_hash,
        "calibration data": batches,
        "Taylor model": taylor.fingerprint,
        "policy": hashlib.sha256(policy.to_json().encode()).hexdigest(),
    }
    return {
        "versions": {"python": platform.python_version(), **_versions()},
        "machine": f"{platform.system()} {platform.machine()}",
        "seeds": {"calibration": curvature.seed, "solver": solver.seed},
        "hashes": {name: value for name, value in hashes.items() if value},
        "peak memory, bytes": _peak_memory(),
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # not installed under this name, or run from a folder
            continue
    return found


def _peak_memory() -> dict[str, int]:
    """Return the most memory that the process has had so far, and that of each GPU that it used."""
    found = {}
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        pass
    else:
        unit = 1 if sys.platform == "darwin" else 1024
        found["process"] = unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if torch.cuda.is_initialized():
        found |= {f"cuda:{at}": torch.cuda.max_memory_allocated(at) for at in range(torch.cuda.device_count())}
    return found
