"""Batches of padded tokens: what is hidden counts neither in moments nor in scores, on whichever side it is."""

import pytest
import torch
from helpers.padded_tokens import one_by_one, padded, tagger
from helpers.profiles import plain_profile
from torch import nn

from lightning_mpq.groups.candidates import offered_schemes
from lightning_mpq.groups.groups import find_groups
from lightning_mpq.network.calibration import Calibration
from lightning_mpq.network.likelihood import Bernoulli, Categorical, Gaussian
from lightning_mpq.network.named_weights import named_layers
from lightning_mpq.network.tokens import real_operand, real_tokens, token_mask
from lightning_mpq.policy import BitPolicy
from lightning_mpq.rounding.input_moments import input_moments
from lightning_mpq.rounding.sequential import round_sequentially


@pytest.mark.parametrize("side", ["left", "right"])
def test_moments_are_those_of_the_sequences_one_by_one(side):
    model = tagger()
    layers = {name: model.get_submodule(name) for name in ("embed", "inner", "flat", "head")}
    found = input_moments(Calibration(model, [padded(side)]), layers)
    expected = input_moments(Calibration(model, one_by_one()), layers)
    for layer in layers.values():
        own, other = found[id(layer.weight)], expected[id(layer.weight)]
        assert own.count == other.count == 9
        torch.testing.assert_close(own.matrix(), other.matrix())
    assert found[id(model.embed.weight)].row_counts[7] == 0


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("likelihood", [Categorical(class_dim=-1), Gaussian(), Bernoulli()])
def test_scores_and_divergence_are_those_of_the_sequences_one_by_one(side, likelihood):
    model = tagger()
    groups = find_groups(model, keep_float=["embed"])  # whose padding would be read by nobody
    settings = {"groups": groups, "bits": [2, 4], "likelihood": likelihood, "estimator": "gauss_newton"}
    found = plain_profile(model, [padded(side)], **settings)
    expected = plain_profile(model, one_by_one(), **settings)
    torch.testing.assert_close(found.curvature, expected.curvature)
    outputs = Calibration(model, []).forward(padded(side))
    alone = [Calibration(model, []).forward(batch) for batch in one_by_one()]
    own = likelihood.divergence(outputs, 0.9 * outputs, padded(side))
    others = [likelihood.divergence(o, 0.9 * o, b) for o, b in zip(alone, one_by_one(), strict=True)]
    torch.testing.assert_close(own, torch.cat(others))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("lockstep", [True, False])
def test_sequential_rounding_does_not_see_the_padding(side, lockstep):
    model = tagger()
    groups = find_groups(model)
    scheme = offered_schemes([2], grids=["half"])[0]
    policy = BitPolicy({g.name: scheme for g in groups}, {g.name: g.layers for g in groups})
    how = {"damping": 0.01, "lockstep": lockstep}  # by default the samples of one batch are halved in another way
    found = round_sequentially(model, [padded(side)], policy, **how)
    expected = round_sequentially(model, one_by_one(), policy, **how)
    assert all(torch.equal(found[name].codes, expected[name].codes) for name in ("inner", "flat", "head"))


def test_only_what_has_a_row_for_each_token_is_cut():
    mask = token_mask((padded("left"), torch.zeros(3)))
    assert mask is not None
    assert mask.sum() == 9
    for shape, kept in (((3, 5, 2), (9, 2)), ((15, 2), (9, 2)), ((3, 2), (3, 2)), ((1, 5, 2), (1, 5, 2))):
        assert real_tokens(torch.zeros(shape), mask).shape == kept
    assert token_mask({"attention_mask": torch.ones(2, 1, 3, 3)}) is None
    assert token_mask(torch.ones(2, 3)) is None


def test_what_products_read_is_cut_along_the_tokens():
    mask = token_mask(padded("left"))
    assert mask is not None
    heads = torch.arange(3.0 * 2 * 5 * 4).reshape(3, 2, 5, 4)
    kept = torch.cat([sample[:, own] for sample, own in zip(heads, mask, strict=True)], 1).transpose(0, 1)
    for operand in (heads, heads.transpose(2, 3), heads.transpose(1, 2), heads.flatten(0, 1)):
        assert sorted(real_operand(operand, mask).flatten().tolist()) == sorted(kept.flatten().tolist())
    for shape in ((3, 2, 5, 5), (4, 2, 5, 4), (3, 2, 4, 4), (3, 5)):
        assert real_operand(torch.zeros(shape), mask).shape == shape


@pytest.mark.parametrize("hidden", [-1e9, float("-inf"), torch.finfo(torch.float16).min])
def test_masks_that_are_added_to_scores_hide_by_negative_numbers(hidden):
    wanted = padded("left")["attention_mask"].bool()
    added = torch.zeros(wanted.shape).masked_fill(~wanted, hidden)
    assert torch.equal(token_mask({"attention_mask": added}), wanted)
    assert token_mask({"attention_mask": torch.zeros(2, 3)}).all()
    assert torch.equal(token_mask({"attention_mask": wanted.half()}), wanted)
    assert not token_mask({"attention_mask": torch.zeros(2, 3).long()}).any()


class Recurrent(nn.Module):
    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(8, 4)
        self.lstm = nn.LSTM(4, 4, batch_first=batch_first, bidirectional=True)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        x = self.embed(input_ids)
        if self.lstm.batch_first:
            return self.lstm(x)[0]
        return self.lstm(x.transpose(0, 1), torch.ones(2, 2, len(x), 4, dtype=x.dtype).unbind())[0].transpose(0, 1)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize(("side", "read_before"), [("left", "_reverse"), ("right", "")])
def test_moments_of_recurrent_layers_are_those_of_the_sequences_one_by_one(batch_first, side, read_before):
    """Also those of hidden states, in the direction in which the padding is read last."""
    model = Recurrent(batch_first).double().eval()
    names = ["lstm.weight_ih_l0", "lstm.weight_ih_l0_reverse", f"lstm.weight_hh_l0{read_before}"]
    layers = {name: layer for name, layer in named_layers(model).items() if name in names}
    found = input_moments(Calibration(model, [padded(side)]), layers)
    expected = input_moments(Calibration(model, one_by_one()), layers)
    assert len(layers) == 3
    for layer in layers.values():
        own, other = found[id(layer.weight)], expected[id(layer.weight)]
        assert own.count == other.count
        torch.testing.assert_close(own.matrix(), other.matrix())
