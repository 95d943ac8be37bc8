"""ggml's table is not symmetric: its scale covers the largest weight of either sign."""

import torch

from lightning_mpq.grids.iq4_nl import LEVELS
from lightning_mpq.quantizers import quantize_rows
from lightning_mpq.schemes import WeightScheme


def test_the_outermost_levels_reach_the_largest_weights_of_both_signs():
    scheme = WeightScheme(4, "channel", "iq4_nl", "absmax", "float32")
    rows = torch.tensor([[-1.0, 0.2, 0.5], [-0.5, 0.2, 1.0], [-1.0, 0.0, 1.0]])
    found = quantize_rows(rows, scheme)
    torch.testing.assert_close(found.dequantize(torch.float32).amax(1)[1:], torch.ones(2), rtol=1e-3, atol=0)
    assert found.codes[0, 0] == 0
    assert (found.codes[1:, 2] == 15).all()
    torch.testing.assert_close(
        found.scale.flatten() / 127, torch.tensor([1 / 127, 1 / 113, 1 / 113]), rtol=1e-3, atol=0
    )
    assert (LEVELS[0], LEVELS[-1]) == (-127, 113)
