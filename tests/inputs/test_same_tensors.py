"""Tensors are known again as long as they live and are not changed."""

import torch

from lightning_mpq.inputs.same_tensors import TensorNumbers


def test_a_tensor_keeps_its_number_until_it_is_changed():
    number, first, second = TensorNumbers(), torch.ones(2), torch.ones(2)
    assert [number(x) for x in (first, second, first)] == [0, 1, 0]
    first.add_(1)
    assert number(first) == 2
    seen = {number(torch.ones(2)) for _ in range(50)}  # whose memory is one and the same
    assert len(seen) == 50
