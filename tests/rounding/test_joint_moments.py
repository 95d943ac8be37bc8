"""Samples in two parts, whatever batches they come in."""

import torch
from torch import nn

from lightning_mpq.groups.candidates import offered_schemes
from lightning_mpq.groups.groups import find_groups
from lightning_mpq.policy import BitPolicy
from lightning_mpq.rounding.joint_moments import JointMoment, PartOfBatch, parts_of_batches
from lightning_mpq.rounding.sequential import round_sequentially


def test_batches_take_turns_and_one_alone_is_cut_by_its_samples():
    batch = torch.randn(6, 4)
    assert [(place.part, place.split) for place in parts_of_batches([batch] * 3)] == [
        (0, False),
        (1, False),
        (0, False),
    ]
    (place,) = parts_of_batches([batch])
    assert [(part, piece.tolist()) for part, piece in place.pieces(batch)] == [
        (0, batch[:3].tolist()),
        (1, batch[3:].tolist()),
    ]
    assert len(place.pieces(torch.randn(24, 4))) == 1  # nothing says which rows are whose


def test_without_hidden_tokens_a_cut_is_still_between_samples():
    mask = torch.tensor([[True, False, True], [True, True, True], [True, False, False], [True, True, False]])
    pieces = PartOfBatch(0, True, 4, mask).pieces(torch.arange(8)[:, None])
    assert [len(piece) for _, piece in pieces] == [5, 3]


def test_means_of_parts_count_by_their_rows():
    one, other = (
        JointMoment(torch.full((1, 1, 1), v), torch.full((1, 1, 1), 2 * v), n) for v, n in ((1.0, 3), (5.0, 1))
    )
    both = JointMoment.over([one, other])
    assert (float(both.cross), float(both.own), both.rows) == (2.0, 4.0, 4)


def test_one_batch_is_rounded_as_its_two_halves():
    torch.manual_seed(0)
    model, data = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5)).double(), torch.randn(40, 6).double()
    groups, scheme = find_groups(model), offered_schemes([2], grids=["half"])[0]
    policy = BitPolicy({g.name: scheme for g in groups}, {g.name: g.layers for g in groups})
    whole, halves = round_sequentially(model, [data], policy), round_sequentially(model, data.split(20), policy)
    fixed = round_sequentially(model, [data], policy, damping=0.01)
    assert all(torch.equal(whole[name].codes, halves[name].codes) for name in policy.weights())
    assert not all(torch.equal(whole[name].codes, fixed[name].codes) for name in policy.weights())
    single = round_sequentially(model, [data[:1]], policy)  # no second sample to judge by
    assert set(single) == set(whole)


def test_means_of_parts_that_are_not_paired_are_taken_once():
    own = [torch.full((1, 1, 1), v) for v in (1.0, 5.0)]
    parts = [JointMoment(each, each, n) for each, n in zip(own, (3, 1), strict=True)]
    both = JointMoment.over(parts)
    assert float(both.own) == 2.0
    assert both.cross is both.own
    assert not parts
