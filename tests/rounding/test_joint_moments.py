"""Samples in two parts, whatever batches they come in."""

import pytest
import torch
from torch import nn

from lightning_mpq import register_layer
from lightning_mpq.groups.candidates import offered_schemes
from lightning_mpq.groups.groups import find_groups
from lightning_mpq.network.layer_kinds import row_parts, weight_rows
from lightning_mpq.network.layerwise import Stop
from lightning_mpq.network.tokens import weights_of_inputs
from lightning_mpq.policy import BitPolicy
from lightning_mpq.quantizers.unfolding import unfolded_chunks
from lightning_mpq.rounding.joint_moments import JointMoment, joint_moments
from lightning_mpq.rounding.parts_of_batches import PartOfBatch, parts_of_batches
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
        JointMoment(torch.full((1, 1, 1), 2 * v), torch.full((1, 1, 1), v), n) for v, n in ((1.0, 3), (5.0, 1))
    )
    parts = [one, other]
    both = JointMoment.over(parts)
    assert both.shift is not None
    assert (float(both.own), float(both.shift), both.rows) == (4.0, 2.0, 4)
    assert not parts  # their memory is used


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(12, 5), (12,)),
        (nn.Linear(5, 12), (5,)),
        (nn.Conv2d(4, 6, 3, groups=2), (4, 6, 6)),
        (nn.Conv2d(4, 64, 3, groups=2), (4, 6, 6)),
    ],
)
def test_the_pull_is_that_of_all_rows_whether_or_not_the_weight_is_taken_into_the_moment(layer, shape):
    layer.double()
    xs = [torch.randn(8, *shape, dtype=torch.float64) for _ in range(2)]
    zs = [x + 0.2 * torch.randn_like(x) for x in xs]

    def stops(inputs: list[torch.Tensor]) -> list[Stop]:
        return [Stop("layer", values, layer(values)) for values in inputs]

    places = parts_of_batches(xs)
    with torch.no_grad():
        moments = joint_moments(layer, stops(xs), stops(zs), places)
    weights = weight_rows(layer).detach().unflatten(0, (row_parts(layer), -1))
    assert moments.paired
    for part, x, z in zip(moments.parts, xs, zs, strict=True):
        chunks = [torch.cat(list(unfolded_chunks(layer, v, layer(v).shape)), 1).detach() for v in (x, z)]
        if isinstance(layer, nn.Linear):
            chunks = [chunk * weights_of_inputs(layer, chunks[0][0]).sqrt()[:, None] for chunk in chunks]
        shift = (chunks[0] - chunks[1]).mT @ chunks[1] / part.rows
        torch.testing.assert_close(part.own, chunks[1].mT @ chunks[1] / part.rows)
        torch.testing.assert_close(part.pull(weights), (weights @ shift).float())
        torch.testing.assert_close(part.pull(weights, 2), (weights @ shift)[:, ::2].float())


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


def test_rows_that_are_not_paired_pull_nothing():
    parts = [JointMoment(torch.full((1, 1, 1), v), None, n) for v, n in ((1.0, 3), (5.0, 1))]
    both = JointMoment.over(parts)
    assert float(both.own) == 2.0
    assert both.shift is None
    assert both.pull(torch.ones(1, 1, 1)) is None


class Uneven(nn.Linear):
    """A linear layer that multiplies what each token has become by something that rounding has no part in."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
        return super().forward(input) * torch.arange(1.0, input.shape[-2] + 1, dtype=input.dtype)[:, None]


register_layer(Uneven, like=nn.Linear)


@pytest.mark.parametrize("kind", [nn.Linear, Uneven])
def test_tokens_count_by_their_outputs_whatever_is_hidden_and_however_many_are_read_at_once(kind, monkeypatch):
    layer = kind(4, 3).double()
    mask = torch.tensor([[1, 1, 0], [1, 1, 1], [0, 1, 1], [1, 0, 0]]) == 1
    batch = {"input_ids": torch.zeros(4, 3), "attention_mask": mask.long()}
    x = torch.randn(4, 3, 4, dtype=torch.float64) * torch.tensor([1.0, 9.0, 1.0])[:, None]
    z = x + 0.1 * torch.randn_like(x)
    monkeypatch.setattr("lightning_mpq.quantizers.unfolding._CHUNK_ELEMENTS", 8)
    with torch.no_grad():
        floats = [Stop("layer", x[mask], layer(x), mask=mask)]
        moments = joint_moments(layer, floats, [Stop("layer", z[mask], None, mask=mask)], parts_of_batches([batch]))
    for part, samples in zip(moments.parts, (slice(2), slice(2, 4)), strict=True):
        own, its = z[samples][mask[samples]], x[samples][mask[samples]]
        root = weights_of_inputs(layer, its).sqrt()[:, None]
        assert 0 < int((root < 1).sum()) < len(root)
        torch.testing.assert_close(part.own[0], (own * root).T @ (own * root) / len(own))
