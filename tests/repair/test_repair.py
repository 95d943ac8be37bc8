"""Repair in its order, against float models that hold the very same weights, biases and statistics."""

import warnings

import pytest
import torch
from helpers.state import same, state_of
from torch import nn

from lightning_mpq.groups.candidates import make_candidates, offered_schemes
from lightning_mpq.groups.groups import find_groups
from lightning_mpq.modules import pack_model, packed_layers
from lightning_mpq.network.calibration import Calibration
from lightning_mpq.network.held_out import hold_out
from lightning_mpq.network.likelihood import Gaussian
from lightning_mpq.network.loss_change import LossChange
from lightning_mpq.options import RepairOptions
from lightning_mpq.pipeline.quantize import quantize
from lightning_mpq.pipeline.temporary_packing import temporarily_packed
from lightning_mpq.policy import BitPolicy
from lightning_mpq.repair.output_means import output_means
from lightning_mpq.repair.repair import Repair, final_codes
from lightning_mpq.rounding.independent import round_candidates, round_policy
from lightning_mpq.rounding.sequential import round_sequentially
from lightning_mpq.schemes import WeightScheme
from lightning_mpq.tools.distributed import rank

SCHEME = offered_schemes([2], grids=["half"])[0]


class Block(nn.Module):
    """A little of a transformer: LayerNorm, two linear layers and a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(6), nn.Linear(6, 12), nn.Linear(12, 6)
        self.head = nn.Linear(6, 3, bias=False)

    def forward(self, inputs):
        return self.head(inputs + self.down(torch.relu(self.up(self.norm(inputs)))))


def network() -> nn.Module:
    torch.manual_seed(0)
    return Block().eval()


def with_batchnorm() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).eval()


def batches() -> list[torch.Tensor]:
    return list(torch.randn(4, 20, 6, generator=torch.Generator().manual_seed(1)) + 0.5)


def policy_of(model: nn.Module) -> BitPolicy:
    return BitPolicy({name: SCHEME for name, module in model.named_modules() if isinstance(module, nn.Linear)})


def test_a_network_with_layernorm_gets_its_mean_outputs_back():
    model = network()
    fitted, _ = hold_out(Calibration(model, batches()))
    wanted = output_means(model, fitted).means
    biases = model.down.bias.detach().clone()
    nearest = BitPolicy({name: WeightScheme(2, grid="half") for name in policy_of(model)})  # which shifts means by far
    quantize(model, nearest, batches())
    assert set(packed_layers(model)) == {"up", "down", "head"}
    found = output_means(model, fitted, wanted).means
    for name, mean in wanted.items():
        torch.testing.assert_close(found[name], mean, atol=1e-6, rtol=1e-5)
    assert not torch.equal(model.down.bias, biases)


def shifted(last: float) -> list[torch.Tensor]:
    """Return three batches with inputs around 2, and one, which is held out, around ``last``."""
    return [batch - 0.5 + shift for batch, shift in zip(batches(), [2.0, 2.0, 2.0, last], strict=True)]


@pytest.mark.parametrize("by", ["held out", "judge"])
@pytest.mark.parametrize(("last", "helps"), [(2.0, True), (-2.0, False)])
def test_biases_that_do_harm_on_data_that_they_were_not_fitted_to_are_taken_back(last, helps, by, monkeypatch):
    """Rounding shifts the mean output by the mean of the inputs: on inputs of the other sign that shift is wrong."""
    torch.manual_seed(0)
    model, data = nn.Sequential(nn.Linear(6, 3)).eval(), shifted(last)
    bias, before = model[0].bias, model[0].bias.detach().clone()
    calibration = Calibration(model, data, likelihood=Gaussian(1.0))
    with torch.no_grad():
        wanted = model(data[-1])
    if by == "judge":
        judge = LossChange(Calibration(model, data[-1:], likelihood=Gaussian(1.0)), "divergence")
        repair = Repair(Calibration(model, data[:-1]), ["0"], RepairOptions(), judge)
    else:
        repair = Repair(calibration, ["0"], RepairOptions())
    pack_model(model, BitPolicy({"0": WeightScheme(2)}))  # second-order rounding would spare the mean
    weight = model[0].weight.detach()
    if helps:
        assert repair.apply() == ("biases",)
        assert repair.refused == ()
        with torch.no_grad():
            assert (model(data[-1]) - wanted).square().mean() < (data[-1] @ weight.T + before - wanted).square().mean()
        return
    with pytest.warns(UserWarning, match="Correcting biases raises the loss on held-out .* is not done"):
        assert repair.apply() == ()
    assert repair.refused == ("biases",)
    assert torch.equal(bias, before)
    monkeypatch.delattr("lightning_mpq.repair.repair.correct_biases")
    assert repair.apply() == ()  # is not tried again
    assert repair.refused == ("biases",)


def test_what_one_sample_says_against_a_repair_is_within_chance(recwarn):
    torch.manual_seed(0)
    model, data = nn.Sequential(nn.Linear(6, 3)).eval(), shifted(-2.0)
    judge = LossChange(Calibration(model, [data[-1][:1]], likelihood=Gaussian(1.0)), "divergence")
    repair = Repair(Calibration(model, data[:-1]), ["0"], RepairOptions(), judge)
    pack_model(model, BitPolicy({"0": WeightScheme(2)}))
    for _ in range(2):  # nor is it left out the next time
        assert list(repair.steps()) == ["biases"]
        assert repair.refused == ("biases",)
    assert not recwarn.list
    assert repair._harmful == set()


def repaired_on_ranks(last: tuple[float, float]) -> tuple[tuple[str, ...], list[float]]:
    """Repair with batches of the rank's own; return what was taken back, and the bias."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 3)).eval()
    repair = Repair(Calibration(model, shifted(last[rank()]), likelihood=Gaussian(1.0)), ["0"], RepairOptions())
    pack_model(model, BitPolicy({"0": WeightScheme(2)}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        repair.apply()
    return repair.refused, model[0].bias.tolist()


def test_all_processes_decide_by_the_samples_of_all(pool):
    """One rank alone would decide the other way each time."""
    for last, refused in (((2.0, -4.0), ("biases",)), ((6.0, -2.0), ())):
        one, two = pool.run(repaired_on_ranks, last)
        assert one == two
        assert one[0] == refused


@pytest.mark.parametrize(("last", "helps"), [(2.0, True), (-2.0, False)])
def test_statistics_that_do_harm_on_data_that_they_were_not_measured_on_are_taken_back(last, helps):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8)).eval()
    repair = Repair(Calibration(model, shifted(last), likelihood=Gaussian(1.0)), ["0"], RepairOptions())
    before = state_of(model)
    pack_model(model, BitPolicy({"0": WeightScheme(2)}))
    assert repair.apply() == (("batchnorm",) if helps else ())
    assert torch.equal(model[1].running_mean, before["1.running_mean"]) is not helps
    assert torch.equal(model[1].running_var, before["1.running_var"]) is not helps


def test_outputs_that_nobody_knows_the_meaning_of_judge_nothing_and_all_batches_are_fitted_to():
    model = network()
    wanted = output_means(model, batches()).means
    quantize(model, policy_of(model), batches(), forward_fn=lambda m, batch: (m(batch), batch))
    found = output_means(model, batches(), wanted).means
    for name, mean in wanted.items():
        torch.testing.assert_close(found[name], mean, atol=1e-6, rtol=1e-5)


def test_every_repair_can_be_switched_off():
    off = RepairOptions(sequential=False, batchnorm=False, biases=False)
    for make in (network, with_batchnorm):
        model = make()
        known, before = round_policy(Calibration(model, batches()), policy_of(model)), state_of(model)
        quantize(model, policy_of(model), batches(), repair=off)
        for name, layer in packed_layers(model).items():
            assert torch.equal(layer.weight, known[name].dequantize())
            if layer.bias is not None:
                assert torch.equal(layer.bias, before[f"{name}.bias"])
        kept = {name: value for name, value in before.items() if "running" in name}
        assert all(torch.equal(model.state_dict()[name], value) for name, value in kept.items())


def test_sequential_rounding_is_what_is_packed_unless_it_is_switched_off():
    model = network()
    sequential = round_sequentially(model, batches(), policy_of(model))
    quantize(model, policy_of(model), batches())
    for name, layer in packed_layers(model).items():
        assert torch.equal(layer.weight, sequential[name].dequantize())
    model = network()
    groups = find_groups(model)
    rounded = round_candidates(model, batches(), groups, make_candidates(groups, schemes=[SCHEME]))
    with pytest.raises(ValueError, match=r"Pass batches=, or repair=RepairOptions\(sequential=False\)"):
        quantize(model, policy_of(model), rounded=rounded)


@pytest.mark.parametrize("batchnorm", [True, False])
def test_codes_in_sequence_are_made_for_the_statistics_that_will_be_there(batchnorm):
    model = with_batchnorm()
    model[1].running_mean += 1
    policy, options = policy_of(model), RepairOptions(batchnorm=batchnorm)
    codes = final_codes(Calibration(model, batches()), policy, options)
    expected = round_sequentially(model, batches(), policy, reestimated=batchnorm)
    other = round_sequentially(model, batches(), policy, reestimated=not batchnorm)
    assert torch.equal(codes["3"].codes, expected["3"].codes)
    assert not torch.equal(codes["3"].codes, other["3"].codes)


def test_layers_that_round_to_nearest_stay_so_behind_layers_in_sequence():
    model = network()
    nearest = WeightScheme(3)
    policy = BitPolicy({"up": SCHEME, "down": nearest, "head": SCHEME})
    codes = final_codes(Calibration(model, batches()), policy, RepairOptions())
    assert torch.equal(codes["down"].codes, round_policy(Calibration(model, batches()), policy)["down"].codes)
    assert {name: rows.scheme for name, rows in codes.items()} == policy.weights()
    assert final_codes(Calibration(model, []), BitPolicy({"up": nearest}), RepairOptions()) == {}


def test_biases_come_before_statistics_and_only_if_asked_for_where_there_is_batchnorm():
    model = with_batchnorm()
    layers = list(policy_of(model))
    unjudged = Calibration(model, batches(), forward_fn=lambda m, batch: (m(batch), "of unknown meaning"))
    repair = Repair(unjudged, layers, RepairOptions())
    both = Repair(unjudged, layers, RepairOptions(biases=True))
    before = state_of(model)
    codes = round_policy(Calibration(model, batches()), policy_of(model))
    with temporarily_packed(model, policy_of(model), codes):
        assert both.apply() == ("biases", "batchnorm")
        assert not torch.equal(model[3].bias, before["3.bias"])
    assert same(state_of(model), before)  # biases and statistics too
    pack_model(model, policy_of(model), codes)
    assert repair.apply() == ("batchnorm",)
    assert torch.equal(model[3].bias, before["3.bias"])


def test_an_error_while_repairing_leaves_the_model_as_it_was():
    model = network()
    before, calls = state_of(model), []

    def forward(model, batch):
        calls.append(1)
        if packed_layers(model) and len(calls) % 3 == 0:
            raise RuntimeError("broken")
        return model(batch)

    with pytest.raises(RuntimeError, match="broken"):
        quantize(model, policy_of(model), batches(), forward_fn=forward)
    assert same(state_of(model), before)
    assert not packed_layers(model)


def test_without_batches_biases_stay():
    model = network()
    bias = model.up.bias.detach().clone()
    quantize(model, BitPolicy({"up": WeightScheme(2)}))
    assert torch.equal(model.up.bias, bias)


def test_options_are_on_off_or_auto():
    with pytest.raises(ValueError, match="biases must be true or false or auto, got 'yes'"):
        RepairOptions(biases="yes")
    with pytest.raises(ValueError, match="sequential must be true or false, got 'auto'"):
        RepairOptions(sequential="auto")
