"""Tensors are known again as long as they live and are not changed; copies by what they hold."""

import pytest
import torch

from lightning_mpq.inputs.same_tensors import TensorNumbers, values_of


def test_a_tensor_keeps_its_number_until_it_is_changed():
    number, first, second = TensorNumbers(), torch.ones(2), torch.ones(2)
    assert [number(x) for x in (first, second, first)] == [0, 1, 0]
    first.add_(1)
    assert number(first) == 2
    seen = {number(torch.ones(2)) for _ in range(50)}  # whose memory is one and the same
    assert len(seen) == 50


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_copies_hold_the_same_values_and_others_do_not(dtype):
    x = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    copies = [x.clone(), x.to(memory_format=torch.channels_last), x.flatten(1), x[:, :, ::2].repeat_interleave(2, 2)]
    assert [values_of(copy) == values_of(x) for copy in copies] == [True, True, True, False]
    one = x.clone()
    one[1, 2, 3, 4] *= 1.01
    assert values_of(one) != values_of(x)
    assert values_of(x[:1]) != values_of(x)
    assert values_of(x.requires_grad_()) == values_of(x.detach())
