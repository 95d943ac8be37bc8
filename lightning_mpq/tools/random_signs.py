"""Random signs, in the memory of what they are to be multiplied with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor


def random_signs(shape: Sequence[int], generator: Generator, dtype: torch.dtype) -> Tensor:
    """Return 1 or -1 by chance, on the generator's device.

    They are drawn as bytes: PyTorch's whole numbers of 8 bytes would be four times the logits of a language model.

    Example:
        >>> random_signs((1, 4), Generator().manual_seed(0), torch.float32)
        tensor([[-1.,  1.,  1., -1.]])
    """
    drawn = torch.randint(0, 2, tuple(shape), generator=generator, device=generator.device, dtype=torch.int8)
    return drawn.to(dtype).mul_(2).sub_(1)
