"""One pass that tells whether all is finite, against looking at each value."""

import pytest
import torch

from lightning_mpq.tools.finite import all_finite


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("bad", [[], [torch.nan], [torch.inf], [-torch.inf], [torch.inf, -torch.inf]])
@pytest.mark.parametrize("large", [False, True])
def test_it_says_what_each_value_does_even_where_their_sum_is_beyond_the_type(dtype, bad, large):
    most = torch.finfo(dtype).max
    values = torch.full((40,), most if large else 1.0, dtype=dtype, requires_grad=True)
    with torch.no_grad():
        values[: len(bad)] = torch.tensor(bad, dtype=dtype)
    assert all_finite(values) is bool(torch.isfinite(values).all()) is (not bad)


def test_whole_numbers_and_nothing_at_all_are_finite():
    assert all_finite(torch.tensor([1, 2**62]))
    assert all_finite(torch.tensor([True]))
    assert all_finite(torch.empty(0))
