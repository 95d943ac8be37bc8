"""Codes are refused for weights that were trained on since they were rounded, and for no others."""

import copy

import pytest
import torch
from torch import nn

import lightning_mpq as mpq
from lightning_mpq.network.calibration import Calibration
from lightning_mpq.pipeline.kept_rounding import KeptRounding

DATA = torch.randn(64, 8, generator=torch.Generator().manual_seed(0)).split(16)
CHANGED = "The weight of layer '0' and 1 more is not the one that was rounded.*round_candidates again"
AS_THEY_ARE = mpq.RepairOptions(sequential=False)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 80), nn.ReLU(), nn.Linear(80, 4))


def rounded_of(model, **arguments):
    groups = mpq.find_groups(model)
    return mpq.round_candidates(model, DATA, groups, mpq.make_candidates(groups, [3, 8]), **arguments)


def policy_of(rounded) -> mpq.BitPolicy:
    return mpq.BitPolicy({c.group: c.scheme for c in rounded.candidates if c.scheme.bits == 3})


def train(model, steps=1, rate=1e-3):
    optimizer = torch.optim.SGD(model.parameters(), rate)
    for _ in range(steps):
        optimizer.zero_grad()
        model(DATA[0]).square().mean().backward()
        optimizer.step()


def profiled(model, rounded):
    return mpq.profile(model, DATA, groups=mpq.find_groups(model), rounded=rounded, likelihood=mpq.Categorical())


def quantized(model, rounded):
    return mpq.quantize(model, policy_of(rounded), DATA, rounded=rounded, repair=AS_THEY_ARE)


def faked(model, rounded):
    return mpq.fake_quantize(model, policy_of(rounded), rounded.of_policy(policy_of(rounded)))


VERBS = pytest.mark.parametrize("verb", [profiled, quantized, faked])


@VERBS
def test_weights_that_were_trained_on_are_refused_and_stay(verb):
    model = network()
    rounded = rounded_of(model)
    train(model)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=CHANGED):
        verb(model, rounded)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert type(model[0]) is nn.Linear


@VERBS
def test_weights_that_are_the_same_are_taken_wherever_they_come_from(verb):
    model = network()
    rounded = rounded_of(model)
    with torch.no_grad():
        model[0].bias.add_(1.0)  # a repair does so
    verb(copy.deepcopy(model).train(), rounded)


@pytest.mark.parametrize("dtypes", [("bfloat16",), ("float64",), ("bfloat16", "float32"), ("float16", "float32")])
def test_another_type_is_no_other_weight(dtypes):
    model = network()
    rounded = rounded_of(model)
    for name in dtypes:
        model.to(getattr(torch, name))
    rounded.refuse_changed(model, ["0", "2"])
    with torch.no_grad():
        model[0].weight.mul_(1.02)
    with pytest.raises(ValueError, match="layer '0' is not"):
        rounded.refuse_changed(model, ["0", "2"])
    rounded.refuse_changed(model, ["2"])


def test_a_model_in_half_precision_may_be_widened():
    model = network().bfloat16()
    rounded = mpq.round_candidates(model, [batch.bfloat16() for batch in DATA])
    rounded.refuse_changed(model.float(), ["0", "2"])
    train(model)
    with pytest.raises(ValueError, match=CHANGED):
        rounded.refuse_changed(model, ["0", "2"])


def test_another_layout_is_no_other_weight():
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3, groups=2))
    rounded = mpq.round_candidates(model, [torch.randn(4, 3, 8, 8)])
    rounded.refuse_changed(model.to(memory_format=torch.channels_last), ["0", "1"])


def test_codes_from_a_folder_are_looked_at_too(tmp_path):
    model = network()
    first = rounded_of(model, kept=KeptRounding(tmp_path, Calibration.of(model, DATA)))
    again = rounded_of(model, kept=KeptRounding(tmp_path, Calibration.of(model, DATA)))
    assert again.fingerprint == first.fingerprint
    train(model)
    with pytest.raises(ValueError, match=CHANGED):
        quantized(model, again)


def test_weights_that_are_no_numbers_are_said_to_be_so():
    model = network()
    rounded = rounded_of(model)
    with torch.no_grad():
        model[0].weight.fill_(float("nan"))
    with pytest.raises(mpq.NonFiniteError):
        profiled(model, rounded)
