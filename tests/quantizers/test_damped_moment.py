"""A factorised moment against inverses, and against error feedback written out column by column."""

import pytest
import torch

from lightning_mpq.errors import NonFiniteError
from lightning_mpq.quantizers.damped_moment import OrderedMoment, type_to_factorise


def moments(groups: int, columns: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(groups, 3 * columns, columns, dtype=torch.float64, generator=generator)
    inputs = inputs * torch.rand(columns, dtype=torch.float64, generator=generator)
    return inputs.mT @ inputs / inputs.shape[1]


@pytest.mark.parametrize("damping", [1e-3, 0.3])
def test_it_solves_for_rows_in_their_own_order_of_columns(damping):
    moment, rows = moments(3, 7), torch.randn(3, 5, 7, dtype=torch.float64)
    unit = moment.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    expected = rows @ torch.linalg.inv(moment + damping * unit * torch.eye(7))
    torch.testing.assert_close(OrderedMoment.of(moment).damped(damping).solve(rows), expected)


def test_errors_are_fed_on_as_by_least_squares_over_the_columns_that_are_left():
    moment, damping = moments(2, 6), 0.05
    errors = torch.randn(2, 4, 6, dtype=torch.float64)
    damped = OrderedMoment.of(moment).damped(damping)
    found = damped.fed_on(errors)
    for group in range(2):
        unit = moment[group].diagonal().mean()
        hessian = moment[group] + damping * unit * torch.eye(6)
        order = moment[group].diagonal().argsort(descending=True).tolist()
        for row in range(4):
            expected = torch.zeros(6, dtype=torch.float64)
            for place, column in enumerate(order):
                error, later = errors[group, row, column], order[place + 1 :]
                # The change of later weights that makes e H e^T least with this column's error added, all else equal.
                step = torch.zeros(6, dtype=torch.float64)
                step[column] = error
                if later:
                    step[later] = -error * torch.linalg.solve(hessian[later][:, later], hessian[later, column])
                expected += step
            torch.testing.assert_close(found[group, row], expected)


def test_a_singular_moment_gets_more_damping_and_what_is_no_moment_is_refused():
    assert torch.isfinite(OrderedMoment.of(torch.ones(1, 4, 4)).damped(0.0).root).all()
    with pytest.raises(NonFiniteError, match="NaN or infinite"):
        OrderedMoment.of(torch.full((1, 2, 2), torch.nan))
    with pytest.raises(ValueError, match="not positive semidefinite"):
        OrderedMoment.of(-torch.eye(3)[None])


@pytest.mark.parametrize("samples", [40, 4000])
def test_single_precision_is_taken_only_where_it_tells_rows_to_a_thousandth(samples):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(1, samples, 512, generator=generator, dtype=torch.float64) + 3
    moment, rows = inputs.mT @ inputs / samples, torch.randn(1, 4, 512, generator=generator)
    least = min(d for d in (1e-4, 0.01, 0.04, 0.16) if type_to_factorise(moment, d, torch.float32) is torch.float32)
    assert type_to_factorise(moment, 1e-4, torch.float32) is torch.float64
    assert type_to_factorise(moment, 10.0, torch.float64) is torch.float64  # who asks for double precision gets it
    single, double = (OrderedMoment.of(each).damped(least).solve(rows) for each in (moment.float(), moment))
    assert float((single - double).norm() / double.norm()) < 1e-3


def test_a_moment_is_the_same_after_it_was_damped_and_tells_what_rows_cost():
    moment, rows = moments(3, 7), torch.randn(3, 5, 7, dtype=torch.float64)
    ordered = OrderedMoment.of(moment)
    before = ordered.matrix.clone()
    ordered.damped(0.7)
    assert torch.equal(ordered.matrix, before)
    torch.testing.assert_close(ordered.cost(rows), ((rows @ moment) * rows).sum(2))
    torch.testing.assert_close(ordered.trace(), moment.diagonal(dim1=1, dim2=2).sum())
