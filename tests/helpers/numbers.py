"""Comparisons of numbers that were computed in different ways."""

import torch
from torch import Tensor


def assert_agree(found: Tensor, expected: Tensor) -> None:
    """Check that two results differ by the order of their sums at most: by units in the last place of the largest.

    Different kernels, memory layouts, batch splits and numbers of threads add in another order, and which of them a
    processor takes is its own business. Bit-identity is asked where the same arithmetic runs, as for stored codes.
    """
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    if not found.is_floating_point():
        assert torch.equal(found, expected)
        return
    epsilon = torch.finfo(found.dtype).eps
    units = 16 if epsilon < 1e-5 else 4
    largest = float(expected.detach().double().abs().max()) if expected.numel() else 0.0
    torch.testing.assert_close(found, expected, rtol=0, atol=units * epsilon * largest)
