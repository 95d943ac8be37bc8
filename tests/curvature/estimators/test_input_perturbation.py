"""What schemes do to inputs: in every type the very difference that the packed layer makes, and its inner products."""

import pytest
import torch
from helpers.networks import mlp
from torch.testing import assert_close

from lightning_mpq import find_groups
from lightning_mpq.curvature.estimators import input_perturbation
from lightning_mpq.curvature.estimators.input_perturbation import InputPerturbations
from lightning_mpq.inputs.quantizer import quantize_inputs, range_between
from lightning_mpq.schemes import InputScheme

SCHEMES = [InputScheme(4), InputScheme(8, symmetric=True), InputScheme(6, "token"), InputScheme(5)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_change_is_what_the_packed_layer_makes_of_an_input(dtype):
    model = mlp(6, 3).to(dtype)
    ranges = {("0", each): range_between(-0.9, 1.7, each) for each in SCHEMES if each.needs_range}
    found = InputPerturbations(model, find_groups(model), [("0", each) for each in SCHEMES], ranges)
    generator = torch.Generator().manual_seed(0)
    x, gradient = (torch.randn(5, 4, 6, generator=generator).to(dtype) for _ in range(2))
    x[0, 0, :3] = torch.tensor([0.0, 9.0, -9.0])
    before = x.clone()
    expected = []
    for index, scheme in enumerate(SCHEMES):
        stored = ranges["0", scheme].tensors() if scheme.needs_range else ()
        expected.append(quantize_inputs(x, scheme, *stored) - x)
        assert torch.equal(found.change("0", index, x), expected[-1]), scheme
    assert torch.equal(found.changes("0", x), torch.stack(expected))
    turned = found.changes("0", x, (2, 0, 1))
    assert torch.equal(turned, torch.stack(expected).permute(0, 3, 1, 2))
    assert turned.is_contiguous()
    products = (torch.stack(expected) * gradient).double().flatten(2).sum(2).T
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.1}[dtype]
    assert_close(found.inner_products("0", x, gradient).double(), products, atol=tolerance, rtol=tolerance)
    vector = found.inner_products("0", x[:, 0, 0], gradient[:, 0, 0])  # one value a row
    assert vector.shape == (5, len(SCHEMES))
    assert torch.equal(x, before)


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_inner_products_are_the_same_a_few_rows_at_a_time(monkeypatch, rows):
    model = mlp(6, 3)
    ranges = {("0", each): range_between(-0.9, 1.7, each) for each in SCHEMES if each.needs_range}
    found = InputPerturbations(model, find_groups(model), [("0", each) for each in SCHEMES], ranges)
    generator = torch.Generator().manual_seed(0)
    x, gradient = (torch.randn(5, 4, 6, generator=generator) for _ in range(2))
    whole = found.inner_products("0", x, gradient)
    monkeypatch.setattr(input_perturbation, "_IN_CACHE", rows * 24)
    assert_close(found.inner_products("0", x, gradient), whole)
