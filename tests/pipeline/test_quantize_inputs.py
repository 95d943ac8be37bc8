"""Policies that quantize inputs are put into effect with ranges of the calibration data, and repaired."""

import copy

import pytest
import torch
from helpers.networks import convnet, images, mlp, vectors
from helpers.numbers import assert_agree
from torch import nn

from lightning_mpq import Calibration, RepairOptions, quantize, round_candidates
from lightning_mpq.groups.candidates import Candidate, make_candidates
from lightning_mpq.groups.groups import find_groups
from lightning_mpq.inputs.calibrate import ranges_of_policy
from lightning_mpq.inputs.quantizer import quantize_inputs
from lightning_mpq.modules import pack_model, policy_of
from lightning_mpq.network.held_out import hold_out
from lightning_mpq.pipeline.kept_rounding import KeptRounding
from lightning_mpq.policy import BitPolicy
from lightning_mpq.quantizers import round_rows
from lightning_mpq.rounding.sequential import round_sequentially
from lightning_mpq.schemes import InputScheme, LayerScheme, WeightScheme

SECOND_ORDER = WeightScheme(4, clip="moment", rounding="second_order")


def policy(inputs: InputScheme, *layers: str, weight: WeightScheme = SECOND_ORDER) -> BitPolicy:
    return BitPolicy({layer: LayerScheme(weight, inputs) for layer in layers})


def test_eight_bits_everywhere_are_close_to_float():
    model, batches = convnet().eval(), images(64, 64)
    twin = quantize(copy.deepcopy(model), policy(InputScheme(8), "conv", "head", weight=WeightScheme(8)), batches)
    assert policy_of(twin).inputs() == {"conv": InputScheme(8), "head": InputScheme(8)}
    (held_out,) = images(64, seed=5)
    error = (twin(held_out) - model(held_out)).std() / model(held_out).std()
    assert float(error) < 0.03


def test_without_batches_the_range_is_asked_for():
    with pytest.raises(ValueError, match="Finding the ranges of inputs needs at least one calibration batch"):
        quantize(mlp(6, 3), policy(InputScheme(8), "0", weight=WeightScheme(8)))
    tokens = quantize(mlp(6, 3), policy(InputScheme(8, "token"), "0", weight=WeightScheme(8)))
    assert tokens[0].input_scheme == InputScheme(8, "token")


@pytest.mark.parametrize("lockstep", [True, False], ids=["lockstep", "layerwise"])
@pytest.mark.parametrize("inputs", [InputScheme(4), InputScheme(4, "token")], ids=str)
def test_rounding_in_sequence_makes_up_for_quantized_inputs(inputs, lockstep, recwarn):
    model, batches = mlp(6, 8, 8, 3), vectors(200, 200)
    schemes = policy(inputs, "0", "2", "4")
    calibration = Calibration(model, batches)
    ranges = ranges_of_policy(calibration, schemes)
    fitted = {"damping": 0.01, "lockstep": lockstep}  # all the way, not as far as other samples say
    rows = round_sequentially(model, batches, schemes, **fitted)
    assert not recwarn.list  # rows of both passes are those of the same samples
    # the target of the last layer: damped least squares from its quantized inputs to the float outputs
    twin = copy.deepcopy(model)
    pack_model(twin, schemes, rows, ranges)
    x = torch.cat(batches)
    z = twin[:4](x)
    tensors = ranges["4"].tensors() if inputs.needs_range else (None, None)
    z = quantize_inputs(z, inputs, *tensors).double()
    outputs = [model(batch).double().square().sum(1) for batch in batches]  # what rows count
    by = torch.cat([(sizes.median() / sizes).clamp(max=1).sqrt() for sizes in outputs])[:, None].detach()
    z, floats = z * by, by * (model[:4](x).double() @ model[4].weight.T.double())
    own = (z.T @ z / len(z)).detach()
    ridge = (0.01 * own.diagonal().mean() * len(z)) ** 0.5 * torch.eye(8).double()
    design, aim = torch.cat([z, ridge]), torch.cat([floats, ridge @ model[4].weight.T.double()])
    target = torch.linalg.lstsq(design, aim).solution.T.detach().float()
    expected = round_rows(target, own[None], [SECOND_ORDER])[0].quantized
    assert torch.equal(rows["4"].codes, expected.codes)
    assert torch.equal(rows["4"].scale, expected.scale)


def test_statistics_are_measured_again_with_quantized_inputs():
    model, batches = convnet().eval(), images(32, 32)
    schemes = policy(InputScheme(4), "conv", weight=WeightScheme(8))
    twin = quantize(copy.deepcopy(model), schemes, batches, repair=RepairOptions(sequential=False))
    fitted = torch.cat(list(hold_out(Calibration(model, batches)).fitted.filled()))
    outputs, floats = twin.conv(fitted), model.conv(fitted)
    shift = twin.norm.running_mean - model.norm.running_mean
    torch.testing.assert_close(shift, outputs.mean((0, 2, 3)) - floats.mean((0, 2, 3)), rtol=0.05, atol=1e-3)


class OneTensor(nn.Module):
    """Two layers that read the same tensor."""

    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Linear(6, 8), nn.Linear(6, 8)

    def forward(self, x):
        return self.one(x) * self.other(x)


def test_a_job_that_was_killed_goes_on_with_the_ranges_of_layers_that_read_one_tensor(tmp_path, monkeypatch):
    torch.manual_seed(0)
    model, batches = OneTensor(), [batch * torch.tensor([9.0, 1, 1, 1, 1, 1]) for batch in vectors(40, 40)]
    with torch.no_grad():
        model.other.weight[:, 0] *= 1e-3  # for itself it would choose another range
    groups = find_groups(model)
    offered = make_candidates(groups, bits=[4], inputs=[4])
    whole = round_candidates(model, batches, groups, offered)
    assert whole.inputs["one", InputScheme(4)] == whole.inputs["other", InputScheme(4)]
    alone = round_candidates(model, batches, [groups[1]], [c for c in offered if c.group == "other"])
    assert alone.inputs["other", InputScheme(4)] != whole.inputs["other", InputScheme(4)]
    keep = KeptRounding.keep

    def killed(self, group, offered, rounded):
        keep(self, group, offered, rounded)
        raise KeyboardInterrupt

    def job():
        return round_candidates(
            model, batches, groups, offered, kept=KeptRounding(tmp_path, Calibration(model, batches))
        )

    monkeypatch.setattr(KeptRounding, "keep", killed)
    with pytest.raises(KeyboardInterrupt):
        job()
    monkeypatch.setattr(KeptRounding, "keep", keep)
    for _ in range(2):
        again = job()
        assert again.inputs == whole.inputs
        assert again.fingerprint == whole.fingerprint


def test_candidates_of_one_weight_scheme_share_its_codes(tmp_path):
    model, batches = mlp(6, 8, 3), vectors(40, 40)
    groups = find_groups(model)
    kinds = [WeightScheme(bits, grid=grid) for bits in (2, 4) for grid in ("half", "symmetric")]
    offered = [
        Candidate(group.name, LayerScheme(weight, inputs), group.stored_bits(weight))
        for group in groups
        for weight in kinds
        for inputs in ("float", InputScheme(8), InputScheme(4))
    ]
    calibration = Calibration(model, batches)
    rounded = round_candidates(model, batches, groups, offered)
    plain = round_candidates(model, batches, groups, [c for c in offered if c.scheme.input == "float"])
    assert [c for c in rounded.candidates if c.scheme.input == "float"] == list(plain.candidates)
    assert len(rounded.candidates) == 3 * len(plain.candidates)
    assert rounded.rows.keys() == plain.rows.keys()
    assert set(rounded.inputs) == {(layer, InputScheme(bits)) for layer in ("0", "2") for bits in (4, 8)}
    for _ in range(2):
        kept = round_candidates(model, batches, groups, offered, kept=KeptRounding(tmp_path, calibration))
        assert kept.inputs == rounded.inputs
        assert kept.fingerprint == rounded.fingerprint != plain.fingerprint
    chosen = policy(InputScheme(8), "0", "2", weight=kinds[3])
    known = round_candidates(model, batches, groups, offered, best_grid=False)
    twin = quantize(copy.deepcopy(model), chosen, batches, rounded=known)
    assert_agree(twin[0].input_scale, torch.tensor(known.inputs["0", InputScheme(8)].scale))
