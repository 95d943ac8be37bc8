"""Profiles of weights that were rounded on calibration data: against D^T H D with those very codes."""

import pytest
import torch
from helpers.profiles import nearest_candidates, plain_profile
from torch import nn

from lightning_mpq.curvature.estimators import perturbation
from lightning_mpq.curvature.estimators.perturbation import Perturbations
from lightning_mpq.grids.registry import DEFAULT_GRIDS
from lightning_mpq.groups.candidates import make_candidates, offered_schemes
from lightning_mpq.groups.groups import find_groups
from lightning_mpq.network.layer_kinds import rows_to_weight, weight_rows
from lightning_mpq.network.likelihood import Gaussian
from lightning_mpq.quantizers import QuantizedRows, quantize_rows
from lightning_mpq.rounding.independent import round_candidates
from lightning_mpq.schemes import WeightScheme


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.ConvTranspose1d(4, 4, 3, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(32, 3)).double()


def batches() -> list[torch.Tensor]:
    return list(torch.randn(3, 5, 4, 6, generator=torch.Generator().manual_seed(1)).double())


def test_perturbations_are_those_of_the_rounded_weights():
    model = network()
    groups = find_groups(model)
    rounded = round_candidates(model, batches(), groups, make_candidates(groups, schemes=offered_schemes([2, 3])))
    perturbations = Perturbations(model, groups, rounded.candidates, rounded=rounded)
    for index, candidate in enumerate(rounded.candidates):
        ((layer, found),) = perturbations.of_candidate(index).items()
        module = model.get_submodule(layer)
        values = rounded.of_layer(layer, candidate.scheme.weight).dequantize(torch.float64)
        torch.testing.assert_close(found, rows_to_weight(module, values - weight_rows(module), module.weight.shape))


@pytest.mark.parametrize("scale_dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("bits", [2, 5, 8])
def test_perturbations_of_float32_are_those_of_float64_rounded_once(bits, scale_dtype):
    torch.manual_seed(0)
    model = nn.Linear(48, 8)
    schemes = [
        WeightScheme(bits, granularity=granularity, grid=grid, scale_dtype=scale_dtype)
        for granularity in ("channel", 16)
        for grid in DEFAULT_GRIDS
    ]
    groups = find_groups(model)
    rounded = round_candidates(model, [], groups, make_candidates(groups, schemes=schemes))
    perturbations = Perturbations(model, groups, rounded.candidates, rounded=rounded)
    for index, candidate in enumerate(rounded.candidates):
        (found,) = perturbations.of_candidate(index).values()
        values = rounded.of_layer(groups[0].layers[0], candidate.scheme.weight).dequantize(torch.float64)
        assert torch.equal(found, (values - model.weight.detach().double()).float())


def test_the_curvature_of_a_last_layer_is_its_output_error():
    """For a Gaussian likelihood of unit variance the divergence is half the squared change of the output."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(24, 3)).double()
    groups = find_groups(model)
    rounded = round_candidates(model, batches(), groups, make_candidates(groups, schemes=offered_schemes([2, 4])))
    taylor = plain_profile(model, batches(), groups=groups, rounded=rounded, estimator="secant", likelihood=Gaussian())
    assert taylor.candidates == rounded.candidates
    inputs, layer = torch.cat(batches()).flatten(1), model[1]
    for index, candidate in enumerate(taylor.candidates):
        error = rounded.of_layer("1", candidate.scheme.weight).dequantize(torch.float64) - layer.weight.detach()
        expected = (inputs @ error.T).square().sum(1).mean()
        torch.testing.assert_close(taylor.curvature[index, index], expected)


def test_other_codes_are_another_profile():
    model = network()
    groups = find_groups(model)
    offered = make_candidates(groups, schemes=offered_schemes([2], grids=["half"]))
    first, second = (round_candidates(model, data, groups, offered) for data in (batches(), batches()[:1]))
    prints = [
        plain_profile(model, batches(), groups=groups, rounded=rounded, likelihood=Gaussian()).fingerprint
        for rounded in (first, first, second)
    ]
    assert prints[0] == prints[1] != prints[2]


def test_candidates_that_were_not_rounded_are_refused():
    model = network()
    groups = find_groups(model)
    rounded = round_candidates(model, batches(), groups, make_candidates(groups, schemes=offered_schemes([2])))
    with pytest.raises(ValueError, match="was not rounded to"):
        plain_profile(
            model,
            batches(),
            groups=groups,
            candidates=nearest_candidates(groups, [2]),
            rounded=rounded,
            likelihood=Gaussian(),
        )


@pytest.mark.parametrize("estimator", ["fisher", "gauss_newton"])
def test_large_layers_are_perturbed_some_candidates_and_some_rows_at_a_time(estimator, monkeypatch):
    model = nn.Sequential(nn.Flatten(), nn.Linear(24, 7), nn.Tanh(), nn.Linear(7, 3))
    data = [batch.float() for batch in batches()]
    options = {"estimator": estimator, "likelihood": Gaussian(), "bits": [2, 3, 4]}
    whole = plain_profile(model, data, **options)
    monkeypatch.setattr(perturbation, "_CHUNK_BYTES", 2 * 4 * 24 * 7)
    monkeypatch.setattr("lightning_mpq.curvature.estimators.change._AT_ONCE", 60)
    parts = plain_profile(model, data, **options)
    torch.testing.assert_close(parts.curvature, whole.curvature, rtol=1e-5, atol=1e-9)


def test_freed_memory_is_given_back_by_the_bytes_that_were_made(monkeypatch):
    model = nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 4)).float()
    groups = find_groups(model)
    calls: list[int] = []
    monkeypatch.setattr(perturbation, "give_back", lambda: calls.append(1))
    made = Perturbations(model, groups, nearest_candidates(groups, [2, 3]), kept_bytes=0)
    made.of_layer("0")
    assert not calls  # a small network would spend its time on this
    monkeypatch.setattr(perturbation, "_GIVEN_BACK", made.of_layer("0").numel() * 4)
    made.of_layer("0")
    assert len(calls) == 1


@pytest.mark.parametrize("granularity", ["tensor", "channel", 4])
def test_of_some_rows_no_others_are_rounded_where_codes_are_not_kept(granularity, monkeypatch):
    model = nn.Sequential(nn.Linear(16, 8))
    groups = find_groups(model)
    candidates = make_candidates(groups, schemes=[WeightScheme(bits, granularity, clip="mse") for bits in (2, 3)])
    whole = Perturbations(model, groups, candidates).of_layer("0")
    heights: list[int] = []

    def rounded(rows: torch.Tensor, scheme: WeightScheme) -> QuantizedRows:
        heights.append(len(rows))
        return quantize_rows(rows, scheme)

    monkeypatch.setattr(perturbation, "quantize_rows", rounded)
    monkeypatch.setattr(perturbation, "_CHUNK_BYTES", 3 * 2 * 16 * 4)
    made = Perturbations(model, groups, candidates, kept_bytes=0)
    for rows, deltas in made.by_rows("0"):
        torch.testing.assert_close(deltas, whole[:, rows])
    assert heights == ([8] * 6 if granularity == "tensor" else [3, 3, 3, 3, 2, 2])
