"""The zeros of an embedding's padding row survive every grid that is offered, and are never lost in silence."""

import pytest
import torch
from torch import nn

import lightning_mpq as mpq
from lightning_mpq.grids.registry import grid_named, known_grids

WITHOUT_ZERO = ("half", "iq4_nl", "q4_1", "q5_1", "q2_k", "q4_k", "q5_k")


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(11, 16, padding_idx=2))


def _packed(scheme: mpq.WeightScheme) -> nn.Module:
    return mpq.quantize(_network(), mpq.BitPolicy({"0": scheme}))


@pytest.mark.parametrize("granularity", ["tensor", "channel", 8])
@pytest.mark.parametrize("grid", known_grids())
def test_the_row_stays_zero_or_the_scheme_is_refused(granularity, grid):
    bits = 4 if 4 in grid_named(grid).bits else grid_named(grid).bits[0]
    scheme = mpq.WeightScheme(bits, granularity, grid)
    if grid in WITHOUT_ZERO and granularity == "tensor":
        with pytest.raises(
            ValueError, match=rf"Layer '0': The row for padding \(padding_idx=2\) is zero, and {bits}-bit {grid}"
        ):
            _packed(scheme)
    else:
        assert not _packed(scheme)[0].weight[2].any()


def test_candidates_that_lose_it_are_left_out_where_others_are_there():
    network, batches = _network(), [torch.arange(11).view(1, 11)]
    groups = mpq.find_groups(network)
    offered = mpq.make_candidates(groups, bits=[2, 4], granularities=["tensor"], grids=["half", "symmetric"])
    rounded = mpq.round_candidates(network, batches, groups, offered)
    assert {candidate.scheme.weight.grid for candidate in rounded.candidates} == {"symmetric"}
    with pytest.raises(ValueError, match="no zero for it"):
        mpq.round_candidates(network, batches, groups, [each for each in offered if each.scheme.weight.grid == "half"])


def test_a_row_that_is_not_zero_is_a_row_like_others():
    network = _network()
    with torch.no_grad():
        network[0].weight[2] = 1.0
    assert mpq.quantize(network, mpq.BitPolicy({"0": mpq.WeightScheme(4, "tensor", "half")}))[0].weight[2].all()
