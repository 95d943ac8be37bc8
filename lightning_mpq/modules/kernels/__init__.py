"""Ways to multiply by a packed weight without dequantizing it, all with one small interface.

`Kernel` says what a kernel must do, `register_kernel` adds one, and `use_kernels` of ``lightning_mpq`` chooses for
the layers of a model. The plain path, dequantize and multiply, is always there.
"""

from .base import Kernel, PreparedLinear, UnsuitableWeightError
from .matrix import PackedMatrix
from .op import linear_by_kernel
from .prepared import forget, prepared_bytes, prepared_for
from .registry import (
    AUTO,
    KERNELS,
    PLAIN,
    Outcome,
    check_kernel_name,
    register_kernel,
)

__all__ = [
    "AUTO",
    "KERNELS",
    "PLAIN",
    "Kernel",
    "Outcome",
    "PackedMatrix",
    "PreparedLinear",
    "UnsuitableWeightError",
    "check_kernel_name",
    "forget",
    "linear_by_kernel",
    "prepared_bytes",
    "prepared_for",
    "register_kernel",
]
