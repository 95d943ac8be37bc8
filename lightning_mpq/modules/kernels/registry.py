"""Which kernels there are, in the order in which they are tried, and which of them takes a weight."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ...grids.registry import grid_named
from ...tools.checks import check_one_of
from ...tools.warning import warn
from .auto_round import AutoRoundKernel
from .base import Kernel, PreparedLinear, UnsuitableWeightError
from .humming import HummingKernel
from .matrix import PackedMatrix
from .torch_cpu import TorchInt4Kernel, TorchInt8Kernel

PLAIN = "plain"
"""Name of the path that is always there: dequantize, then torch's own product."""
AUTO = "auto"
"""Name of the choice of the first kernel that takes a weight."""

KERNELS: dict[str, Kernel] = {}
"""Name to kernel; those that are faster where they can be used come first."""
BY_DESIGN = ("works on", "is slower")
"""How reasons begin that are no news where other kernels were tried as well: it is made for something else."""
_warned: set[tuple[str, str]] = set()


class Outcome(NamedTuple):
    """Which kernel takes a weight.

    Attributes:
        prepared: The weight in that kernel's layout; None for the plain path.
        reasons: Why the kernels tried before could not take it: name to the rest of a sentence.
    """

    prepared: PreparedLinear | None
    reasons: dict[str, str]

    @property
    def kernel(self) -> str:
        """The name of the kernel."""
        return PLAIN if self.prepared is None else self.prepared.kernel

    @property
    def why(self) -> str:
        """The reasons against all kernels tried before, in a sentence."""
        return "; ".join(f"{name} {reason}" for name, reason in self.reasons.items())


def register_kernel(kernel: Kernel, first: bool = False) -> Kernel:
    """Offer a kernel under its name, replacing one of the same name.

    Args:
        kernel: The kernel.
        first: Whether ``"auto"`` tries it before all others, or after them.
    """
    others = {name: known for name, known in KERNELS.items() if name != kernel.name}
    KERNELS.clear()
    KERNELS.update({kernel.name: kernel, **others} if first else {**others, kernel.name: kernel})
    return kernel


for _kernel in (TorchInt4Kernel(), TorchInt8Kernel(), AutoRoundKernel(), HummingKernel()):
    register_kernel(_kernel)


def check_kernel_name(name: str) -> None:
    """Raise a sentence if there is no kernel of that name.

    Raises:
        ValueError: If it is neither a kernel nor ``"auto"`` nor ``"plain"``.
    """
    check_one_of("kernel", name, (AUTO, PLAIN, *KERNELS))


def prepare_by(name: str, matrix: PackedMatrix, dtype: torch.dtype) -> Outcome:
    """Prepare a weight by a kernel, or by the first that takes it, and compare it with the plain path.

    Args:
        name: A kernel's name, or ``"auto"``, or ``"plain"``.
        matrix: The weight.
        dtype: Type of the inputs.
    """
    check_kernel_name(name)
    reasons: dict[str, str] = {}
    if name != PLAIN and grid_named(matrix.scheme.grid).integer_form(matrix.scheme.bits) is None:
        return Outcome(None, {name: f"multiplies by integers, and the grid {matrix.scheme.grid!r} is none of them"})
    wanted = [] if name == PLAIN else list(KERNELS.values()) if name == AUTO else [KERNELS[name]]
    for kernel in wanted:
        reason = kernel.why_not(matrix, dtype)
        if reason is None:
            try:
                with torch.autocast(matrix.device.type, enabled=False):
                    prepared = kernel.prepare(matrix, dtype)
                    reason = _disagreement(kernel, prepared, matrix, dtype)
            except UnsuitableWeightError as error:
                reason = str(error)
            except Exception as error:  # whatever a package of others raises, the plain path computes it
                reason = f"failed to prepare the weight ({type(error).__name__}: {error})"
            if reason is None:
                return Outcome(prepared, reasons)
        reasons[kernel.name] = reason
    return Outcome(None, reasons)


def warn_once(outcome: Outcome) -> None:
    """Say which kernels cannot be used, and why; the same reason of the same kernel only once in a process.

    Where several were tried, those that are made for other devices or types are passed over.
    """
    for name, reason in outcome.reasons.items():
        expected = len(outcome.reasons) > 1 and reason.startswith(BY_DESIGN)
        if (name, reason) not in _warned and not expected:
            _warned.add((name, reason))
            warn(
                f"The kernel {name!r} cannot be used: it {reason}. Packed layers are dequantized at each call instead."
            )


@torch.no_grad()
def _disagreement(kernel: Kernel, prepared: PreparedLinear, matrix: PackedMatrix, dtype: torch.dtype) -> str | None:
    """Multiply a few inputs by a prepared weight and by the dequantized one; return why it cannot be believed."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(3, matrix.columns, generator=generator).to(matrix.device, dtype)
    expected = inputs.to(torch.float32) @ matrix.dequantize(torch.float32).T
    found = prepared.linear(inputs, None).to(torch.float32)
    error = (found - expected).abs().max() / expected.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
    if found.shape == expected.shape and error <= kernel.tolerance(dtype):
        return None
    return f"gave outputs {float(error):.2g} of the greatest apart from the plain path's"
