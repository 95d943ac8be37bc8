"""What other tools' tests expect of theirs, of ours: facts and numbers, and none of their lines.

- NVIDIA Model Optimizer 0.47, ``test_autoquant.py``: effective bits lie between the least width and the budget, fused
  projections are one decision, a disabled layer does no harm to others, a budget below the least is refused.
- AutoRound 0.16, ``test_auto_scheme_helpers.py``: bits of a scheme with its scales, more bits for a larger budget.
"""

import pytest
import torch
from torch import nn

from lightning_mpq import Budget, Gaussian, WeightScheme, allocate, find_groups, make_candidates, profile
from lightning_mpq.errors import InfeasibleBudgetError

BATCHES = list(torch.randn(4, 8, 16, generator=torch.Generator().manual_seed(0)))
WIDTHS = (2, 4, 8)


class Attention(nn.Module):
    """Projections that runtimes fuse, one after them, and a head."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(self, name, nn.Linear(16, 16))
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        return self.head(x + self.o_proj(torch.sigmoid(self.q_proj(x) * self.k_proj(x)) * self.v_proj(x)))


def taylor_of(net, shrink=True, **rules):
    groups = find_groups(net, **rules)
    candidates = make_candidates(groups, WIDTHS, rounding="nearest", granularities=("channel",))
    return profile(net, BATCHES, groups=groups, candidates=candidates, likelihood=Gaussian(), shrink=shrink)


SCALES = 16 / 16
"""Bits a weight that a scale of 16 bits for each row of 16 columns takes."""


@pytest.mark.parametrize("bits", [2.0, 3.1, 4.0, 5.5, 8.0])
def test_effective_bits_lie_between_the_least_width_and_the_budget(bits):
    found = allocate(taylor_of(Attention()), Budget(average_bits=bits + SCALES))
    assert 2 + SCALES <= found.costs["average_bits"] <= bits + SCALES
    if bits == 8.0:
        assert set(found.policy.bits().values()) == {8}


def test_a_larger_budget_never_means_a_larger_loss():
    taylor = taylor_of(Attention())
    found = [allocate(taylor, Budget(average_bits=bits + SCALES), gap=0.0) for bits in (2.0, 2.5, 3.0, 4.0, 6.0, 8.0)]
    losses = [plan.value for plan in found]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > 2 * losses[-1]


def test_fused_projections_are_one_decision():
    found = allocate(taylor_of(Attention(), fuse="vllm"), Budget(average_bits=3.5 + SCALES)).policy.by_layer()
    assert len({str(found[name]) for name in ("q_proj", "k_proj", "v_proj")}) == 1
    assert len(found) == 5


def test_a_layer_that_stays_in_float_does_no_harm_to_the_others():
    alone = taylor_of(Attention(), shrink=False, keep_float=["head"])
    every = taylor_of(Attention(), shrink=False)
    names = [candidate.group for candidate in every.candidates]
    kept = torch.tensor([name != "head" for name in names])
    torch.testing.assert_close(alone.curvature, every.curvature[kept][:, kept], rtol=1e-4, atol=1e-12)


def test_a_budget_below_the_least_says_the_least():
    with pytest.raises(InfeasibleBudgetError, match="is below the least possible value, 3"):
        allocate(taylor_of(Attention()), Budget(average_bits=2.5))


@pytest.mark.parametrize(
    ("bits", "block", "average"),
    [
        (4, 128, 4.125),  # W4A16: a scale of 16 bits for 128 weights
        (2, 128, 2.125),
        (2, 32, 2.5),
        (8, "channel", 8 + 16 / 4096),  # W8A16: group size -1, a scale a row
        (8, "tensor", 8 + 16 / (4096 * 4096)),  # group size 0
    ],
)
def test_bits_of_a_scheme_count_its_scales(bits, block, average):
    assert WeightScheme(bits, block).stored_bits(4096, 4096) / 4096**2 == pytest.approx(average, rel=1e-12)


def test_a_zero_point_of_a_byte_is_what_is_counted_beside_them():
    # AutoRound counts as many bits for a zero point as for a code: 4.15625 a weight. Ours is a byte.
    assert WeightScheme(4, 128, "asymmetric").stored_bits(4096, 4096) / 4096**2 == 4 + (16 + 8) / 128
