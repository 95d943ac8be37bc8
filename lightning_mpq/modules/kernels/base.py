"""The interface of kernels: say what cannot be done, and turn a packed weight into a function."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from .matrix import PackedMatrix

Linear = Callable[[Tensor, "Tensor | None"], Tensor]
"""(inputs [m, columns] with m > 0, contiguous; bias [rows] or None, in the type of the inputs) to [m, rows]."""


@dataclass(frozen=True)
class PreparedLinear:
    """A weight in the layout that a kernel reads.

    Attributes:
        kernel: Name of the kernel.
        linear: Multiplies by the weight and adds a bias; it must not hold the stored tensors, whose end is its own.
        nbytes: Bytes that the layout occupies beside the stored ones.
    """

    kernel: str
    linear: Linear
    nbytes: int


class UnsuitableWeightError(ValueError):
    """A kernel cannot take these very values; the message is the rest of a sentence about the kernel."""


class Kernel(ABC):
    """A way to multiply by a packed weight that never holds the dequantized one.

    Attributes:
        name: What ``use_kernels(model, name)`` calls it.
    """

    name: ClassVar[str]

    @abstractmethod
    def why_not(self, matrix: PackedMatrix, dtype: torch.dtype) -> str | None:
        """Return why the kernel cannot take a weight for inputs of a type, as the rest of a sentence; None if it can.

        Looks at shapes, types, devices and installed packages only.
        """

    @abstractmethod
    def prepare(self, matrix: PackedMatrix, dtype: torch.dtype) -> PreparedLinear:
        """Bring a weight that `why_not` has nothing against to the kernel's own layout.

        Raises:
            UnsuitableWeightError: If its values turn out not to fit.
        """

    def tolerance(self, dtype: torch.dtype) -> float:
        """Return the difference from the plain path, relative to the greatest output, that rounding explains."""
        return {torch.float32: 1e-5, torch.float16: 5e-3}.get(dtype, 3e-2)


def block_sums(inputs: Tensor, block: int) -> Tensor:
    """Sum [m, columns] over blocks of columns, the last one of which may be shorter: [m, blocks]."""
    columns = inputs.shape[1]
    if block >= columns:
        return inputs.sum(1, keepdim=True)
    padded = pad(inputs, (0, -columns % block))
    return padded.unflatten(1, (-1, block)).sum(2)


def bytes_of(*tensors: Tensor | None) -> int:
    """Return the bytes of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)
