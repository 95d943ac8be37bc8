"""The few solves that are made against all that there could be, on inputs as correlated as those of networks."""

import pytest
import torch
from torch import Tensor

from lightning_mpq.grids.registry import DEFAULT_GRIDS
from lightning_mpq.quantizers import QuantizedRows, quantize_rows, round_rows
from lightning_mpq.quantizers.clip_search import trial_ratios
from lightning_mpq.quantizers.error_feedback import ErrorFeedback
from lightning_mpq.quantizers.input_moments import gram
from lightning_mpq.quantizers.quantized_rows import placed
from lightning_mpq.schemes import WeightScheme


def layer(rows: int, columns: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return a weight with heavy tails, the moment of 4 inputs a column, and that of others of the same kind."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    weight = normal(rows, columns) * normal(rows, columns).abs().sqrt()
    mixing = normal(columns, columns) * torch.logspace(0, -1.5, columns, dtype=torch.float64)[:, None]
    fitted, others = normal(4 * columns, columns) @ mixing, normal(4 * columns, columns) @ mixing
    return weight, fitted.T @ fitted / len(fitted), others.T @ others / len(others)


def error(quantized: QuantizedRows, weight: Tensor, moment: Tensor) -> Tensor:
    """e M e^T of each row in float64."""
    errors = quantized.dequantize(torch.float64) - weight
    return ((errors @ moment) * errors).sum(1)


@pytest.mark.parametrize("grid", DEFAULT_GRIDS)
@pytest.mark.parametrize(("bits", "columns"), [(2, 96), (3, 96), (4, 96), (8, 96), (3, 24)])
def test_other_inputs_see_no_more_error_than_if_every_range_were_solved(bits, columns, grid):
    weight, moment, others = layer(48, columns)
    best = WeightScheme(bits, grid=grid, clip="moment", rounding="second_order")
    fixed = [WeightScheme(bits, grid=grid, clip=ratio, rounding="second_order") for ratio in trial_ratios(best)]
    every = torch.stack([error(each.quantized, weight, moment) for each in round_rows(weight, moment[None], fixed)])
    unseen = torch.stack([error(each.quantized, weight, others) for each in round_rows(weight, moment[None], fixed)])
    exhaustive = unseen.gather(0, every.argmin(0)[None]).sum()
    found = error(round_rows(weight, moment[None], [best])[0].quantized, weight, others).sum()
    assert found < 1.03 * exhaustive


def test_what_is_pending_explains_the_loss():
    """The rounding error of each pending weight, squared, at the cost of its column: the bound that ranks ranges."""
    weight, moment, _ = layer(5, 40)
    factor = ErrorFeedback.factorise(moment[None], 0.01, torch.float64)
    scheme = WeightScheme(3, grid="half", scale_dtype="float32")
    levels = placed(quantize_rows(weight, scheme).scale, None, scheme, 40, torch.float64).map(lambda each: each[None])
    codes, loss, _, pending = factor.round(weight[None], levels)
    assert torch.equal(levels.nearest(pending).to(torch.uint8), codes)
    left = (levels.values(codes) - pending).square()
    torch.testing.assert_close((factor.column_costs()[:, None] * left).sum(2), loss)


def test_a_diagonal_moment_needs_no_feedback():
    """As a matrix it gives the same weights, whatever the scheme: an embedding looks rows up and correlates nothing."""
    weight, _, _ = layer(6, 20)
    diagonal = torch.rand(20, dtype=torch.float64) + 0.1
    for grid in DEFAULT_GRIDS:
        for granularity in ("tensor", "channel"):
            near = WeightScheme(3, granularity, grid, clip="moment")
            full = WeightScheme(3, granularity, grid, clip="moment", rounding="second_order")
            expected = round_rows(weight, diagonal.diag()[None], [near])[0]
            found = round_rows(weight, diagonal[None], [full])[0]
            assert torch.equal(found.quantized.codes, expected.quantized.codes)
            assert found.error == pytest.approx(expected.error)


def test_a_symmetric_product_is_whole():
    values = torch.randn(2, 7, 400, dtype=torch.float64)
    torch.testing.assert_close(gram(values), values.mT @ values)
