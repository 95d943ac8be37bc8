"""Sequential rounding against least squares in closed form, and its gain over rounding by float inputs."""

import copy
import threading
from statistics import geometric_mean

import pytest
import torch
from helpers.routing import EarlyExit, Experts, Loops, Routed, Sampling, Sorted, TopK, routed
from helpers.state import state_of
from helpers.wrapped_layers import SamePadding, Scored
from torch import nn

from lightning_mpq.errors import NonFiniteError
from lightning_mpq.groups.candidates import offered_schemes
from lightning_mpq.groups.groups import find_groups
from lightning_mpq.modules import pack_model
from lightning_mpq.network.calibration import Calibration
from lightning_mpq.network.likelihood import Categorical
from lightning_mpq.policy import BitPolicy
from lightning_mpq.quantizers import round_rows
from lightning_mpq.rounding.independent import round_policy
from lightning_mpq.rounding.sequential import round_sequentially

SCHEMES = {bits: offered_schemes([bits], grids=["half"])[0] for bits in (2, 3)}


def policy_of(model: nn.Module, bits: int) -> BitPolicy:
    groups = find_groups(model)
    return BitPolicy({g.name: SCHEMES[bits] for g in groups}, {g.name: g.layers for g in groups})


def samples(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.3


def roots(layer, x, size):
    """Return the square roots of what rows count: less where outputs are larger than the batch's median."""
    sizes = [layer(part).square().sum(1) for part in x.split(size)]
    return torch.cat([(own.median() / own).clamp(max=1).sqrt() for own in sizes])[:, None]


def test_the_second_layer_is_rounded_to_the_ridge_regression_of_float_outputs_on_quantized_inputs():
    torch.manual_seed(0)
    model, data = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double(), samples(60, 6)
    scheme = SCHEMES[2]
    rounded = round_sequentially(model, data.split(25), policy_of(model, 2), damping=0.01)
    with torch.no_grad():
        even = data * roots(model[0], data, 25)
        first = round_rows(model[0].weight, (even.T @ even / 60)[None], [scheme])[0].quantized
        assert torch.equal(rounded["0"].codes, first.codes)  # nothing comes before it
        x = torch.tanh(model[0](data))
        z = torch.tanh(data @ first.dequantize(torch.float64).T + model[0].bias)
        by = roots(model[2], x, 25)
        x, z = x * by, z * by
        own = z.T @ z / 60
        ridge = (0.01 * own.diagonal().mean() * 60) ** 0.5 * torch.eye(8).double()
        # Least squares with rows of ridge below: |W' z - W x|^2 summed, plus the distance of W' from W.
        design, aim = torch.cat([z, ridge]), torch.cat([x @ model[2].weight.T, ridge @ model[2].weight.T])
        target = torch.linalg.lstsq(design, aim).solution.T
        expected = round_rows(target, own[None], [scheme])[0].quantized
    assert torch.equal(rounded["2"].codes, expected.codes)
    assert torch.equal(rounded["2"].scale, expected.scale)


def test_for_reestimated_statistics_inputs_are_those_behind_the_statistics_of_each_batch():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)).double().eval()
    model[1].running_mean += 1
    model[1].running_var *= 4
    buffers = [buffer.clone() for buffer in model.buffers()]
    data, scheme = samples(60, 6), SCHEMES[2]
    rounded, frozen = (
        round_sequentially(model, data.split(20), policy_of(model, 2), damping=0.01, reestimated=way)
        for way in (True, False)
    )
    with torch.no_grad():
        x, z = torch.zeros(0, 8).double(), torch.zeros(0, 8).double()
        for batch in data.split(20):
            for weight in (model[0].weight, rounded["0"].dequantize(torch.float64)):
                hidden = batch @ weight.T  # the bias does not matter behind these statistics
                hidden = torch.tanh((hidden - hidden.mean(0)) / (hidden.var(0, unbiased=False) + 1e-5).sqrt())
                x, z = (torch.cat([x, hidden]), z) if weight is model[0].weight else (x, torch.cat([z, hidden]))
        by = roots(model[3], x, 20)
        x, z = x * by, z * by
        own = z.T @ z / 60
        damped = own + 0.01 * own.diagonal().mean() * torch.eye(8)
        aim = model[3].weight @ (x.T @ z / 60 + damped - own)
        expected = round_rows(aim @ torch.linalg.inv(damped), own[None], [scheme])[0].quantized
    assert torch.equal(rounded["3"].codes, expected.codes)
    torch.testing.assert_close(rounded["3"].scale, expected.scale)
    assert not torch.equal(rounded["3"].codes, frozen["3"].codes)
    assert all(torch.equal(one, other) for one, other in zip(buffers, model.buffers(), strict=True))
    assert not model[1].training


class Net(nn.Module):
    """Every kind of layer; one is called twice, two share a weight, and they are not called in order."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 5)
        self.conv = nn.Conv2d(4, 8, 3, padding=1, groups=2)
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2, groups=4)
        self.twice = nn.Linear(8, 8)
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)
        self.two.weight = self.one.weight
        self.drop = nn.Dropout(0.5)

    def forward(self, images):
        hidden = torch.relu(self.up(torch.relu(self.conv(images)))).flatten(2).mT
        hidden = self.drop(torch.tanh(self.twice(torch.tanh(self.twice(hidden)))))
        return self.head(torch.tanh(self.two(torch.tanh(self.one(hidden)))))


def output_error(model: nn.Module, rounded: dict, policy: BitPolicy, images: torch.Tensor) -> float:
    with torch.no_grad():
        expected = model.eval()(images)
        floats = pack_model(model, policy, rounded)
        found = model(images)
        for name, layer in floats.items():
            model.set_submodule(name, layer)
    return float((found - expected).square().mean())


@pytest.mark.parametrize("bits", [2, 3])
def test_held_out_outputs_come_closer_than_by_float_inputs(bits):
    ratios = []
    for seed in range(6):  # a network alone may be lucky either way
        torch.manual_seed(seed)
        model = Net()
        calibration, held_out = samples(96, 4, 6, 6).float(), samples(160, 4, 6, 6).float()[96:]
        policy = policy_of(model, bits)
        parallel = output_error(
            model, round_policy(Calibration(model, calibration.split(32)), policy), policy, held_out
        )
        sequential = output_error(model, round_sequentially(model, calibration.split(32), policy), policy, held_out)
        ratios.append(sequential / parallel)
    assert geometric_mean(ratios) < 0.8


def test_the_model_and_the_random_state_are_as_they_were_and_shared_weights_share_codes():
    model = Net().train()
    before = state_of(model)
    state = torch.get_rng_state()
    rounded = round_sequentially(model, samples(8, 4, 6, 6).float().split(4), policy_of(model, 2))
    assert set(rounded) == {"head", "conv", "up", "twice", "one", "two"}
    assert rounded["one"].codes is rounded["two"].codes
    assert all(quantized.scheme == SCHEMES[2] for quantized in rounded.values())
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("lockstep", [True, False])
def test_a_layer_that_pads_by_itself_is_rounded_as_one_that_is_given_padded_inputs(lockstep):
    torch.manual_seed(0)
    own = nn.Sequential(SamePadding(2, 4, 3, stride=2), nn.Tanh(), SamePadding(4, 3, 3)).double()
    plain = nn.Sequential(nn.Conv2d(2, 4, 3, stride=2), nn.Tanh(), nn.Conv2d(4, 3, 3)).double()
    plain.load_state_dict(own.state_dict())
    twin = nn.Sequential(nn.ZeroPad2d(1), plain[0], plain[1], nn.ZeroPad2d(1), plain[2])
    data = samples(8, 2, 7, 7).split(4)
    for rounding in (
        round_sequentially,
        lambda model, data, policy, **_: round_policy(Calibration(model, data), policy),
    ):
        found = rounding(own, data, policy_of(own, 2), lockstep=lockstep)
        expected = rounding(twin, data, policy_of(twin, 2), lockstep=lockstep)
        for name, other in (("0", "1"), ("2", "4")):
            assert torch.equal(found[name].codes, expected[other].codes)
            assert torch.equal(found[name].scale, expected[other].scale)


class Second(nn.Module):
    """Takes the second of two outputs."""

    def forward(self, outputs: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return outputs[1]


@pytest.mark.parametrize("lockstep", [True, False])
@pytest.mark.parametrize("batch", [4, 3])  # of uneven batches halves are cut
def test_a_layer_that_returns_more_than_its_outputs_is_rounded_as_one_that_does_not(lockstep, batch):
    torch.manual_seed(0)
    own = nn.Sequential(nn.Linear(4, 6, bias=False), nn.Tanh(), Scored(6, 3, bias=False), Second()).double()
    plain = nn.Sequential(nn.Linear(4, 6, bias=False), nn.Tanh(), nn.Linear(6, 3, bias=False), nn.Identity()).double()
    plain.load_state_dict(own.state_dict())
    data = samples(8, 5, 4).split(batch)
    found = round_sequentially(own, data, policy_of(own, 2), lockstep=lockstep)
    expected = round_sequentially(plain, data, policy_of(plain, 2), lockstep=lockstep)
    for name in ("0", "2"):
        assert torch.equal(found[name].codes, expected[name].codes)


def test_numbers_that_are_not_finite_are_refused_with_the_layers_name_and_no_thread_stays():
    model, threads = Net(), threading.active_count()
    policy = policy_of(model, 2)
    model.up.register_forward_hook(lambda module, args, output: output / 0)
    known = round_policy(Calibration(Net(), samples(4, 4, 6, 6).float().split(4)), policy)
    with pytest.raises(NonFiniteError, match="inputs of the layer 'head' are NaN or infinite"):
        round_sequentially(model, samples(8, 4, 6, 6).float().split(4), policy, rounded=known)
    assert threading.active_count() == threads
    with torch.no_grad():
        model.conv.weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="'weight' in the module 'conv'"):
        round_sequentially(model, samples(8, 4, 6, 6).float().split(4), policy)


def test_no_batch_is_a_sentence():
    model = Net()
    with pytest.raises(ValueError, match="at least one calibration batch"):
        round_sequentially(model, [], policy_of(model, 2))


def test_each_batch_passes_once_however_many_layers_there_are():
    model, calls = Net(), []
    model.conv.register_forward_hook(lambda module, args, output: calls.append(len(args[0])))
    policy = policy_of(model, 2)
    batches = samples(12, 4, 6, 6).float().split(4)
    known = round_policy(Calibration(model, batches), policy)
    calls.clear()
    found = round_sequentially(model, batches, policy, rounded=known)
    assert calls == [4] * (1 + 2 * len(batches))  # the order of calls, then model and copy, which has the hook too
    assert found["twice"] is known["twice"]  # called several times in a pass
    again = round_sequentially(model, batches, policy)
    assert all(torch.equal(found[name].codes, again[name].codes) for name in found)


def held_out_divergence(model: nn.Module, policy: BitPolicy, codes: dict, batches: list[torch.Tensor]) -> float:
    packed, total = copy.deepcopy(model), 0.0
    pack_model(packed, policy, codes)
    with torch.no_grad():
        for number, batch in enumerate(batches):
            both = []
            for net in (model, packed):
                torch.manual_seed(number)
                both.append(net(batch))
            total += float(Categorical().divergence(*both, None).mean())
    return total / len(batches)


PAIRED = {Routed: True, Sampling: True, Sorted: False, TopK: False, Experts: False, EarlyExit: False, Loops: None}


@pytest.mark.parametrize("kind", PAIRED)
def test_rows_are_paired_only_where_they_are_those_of_the_same_samples(kind, recwarn):
    """Paired wrongly, such networks lose up to ten times as much as by float inputs."""
    ratios = []
    for seed in range(3):
        model = routed(kind, seed)
        generator = torch.Generator().manual_seed(seed)
        batches = [torch.randn(64, 12, generator=generator) for _ in range(10)]
        policy = policy_of(model, 3)
        independent = round_policy(Calibration(model, batches[:6]), policy)
        sequential = round_sequentially(model, batches[:6], policy, rounded=independent)
        apart, together = (
            held_out_divergence(model, policy, codes, batches[6:]) for codes in (independent, sequential)
        )
        ratios.append(together / apart)
    said = [warning for warning in recwarn if "belong to which samples" in str(warning.message)]
    assert geometric_mean(ratios) < (1.0 if kind is Routed else 1.25)
    assert PAIRED[kind] is None or bool(said) != PAIRED[kind]  # a loop may end as often in both passes


@pytest.mark.parametrize("kind", [Sampling, Experts])
def test_random_numbers_are_the_same_in_both_passes_and_from_call_to_call(kind):
    model, batches = routed(kind), [torch.randn(32, 12) for _ in range(3)]
    policy, found = policy_of(model, 2), []
    for seed in range(2):
        torch.manual_seed(seed)
        found.append(round_sequentially(model, batches, policy))
    assert all(torch.equal(found[0][name].codes, found[1][name].codes) for name in found[0])
