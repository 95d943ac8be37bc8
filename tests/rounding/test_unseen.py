"""A weight whose inputs were not seen is named with the one cause that holds for it."""

import warnings

import torch
from torch import nn
from torch.nn import functional as F

import lightning_mpq as mpq
from lightning_mpq.rounding.unseen import ELSEWHERE, EMPTY, INSIDE, NEVER


class Odd(nn.Module):
    """Layers that are called, called on nothing, read by others, and never used."""

    def __init__(self):
        super().__init__()
        self.called, self.expert, self.read, self.unused = (nn.Linear(4, 4) for _ in range(4))
        self.stack = nn.LSTM(4, 4, num_layers=3, batch_first=True)

    def forward(self, inputs):
        hidden = F.linear(self.called(inputs), self.read.weight)
        return self.stack((hidden + self.expert(inputs[:0]).sum())[:, None])[0][:, 0]


def test_each_cause_is_a_warning_of_its_own():
    torch.manual_seed(0)
    model = Odd()
    groups = [group for group in mpq.find_groups(model) if "called" not in group.name]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        mpq.round_candidates(model, [torch.randn(8, 4)], groups, mpq.make_candidates(groups, [4]))
    said = [str(warning.message) for warning in caught if "Rounding to the levels nearest" in str(warning.message)]
    assert sorted(said) == sorted(
        f"{cause}: {names}. Rounding to the levels nearest to the weights is what remains."
        for cause, names in {
            EMPTY: "expert",
            ELSEWHERE: "read",
            NEVER: "unused",
            INSIDE: "stack.weight_hh_l0, stack.weight_ih_l1, stack.weight_hh_l1, stack.weight_ih_l2, "
            "stack.weight_hh_l2",
        }.items()
    )
