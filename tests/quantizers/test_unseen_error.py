"""The error on unseen samples, as halves of the samples tell it, against that on samples that were really not seen."""

import pytest
import torch
from torch import nn

from lightning_mpq import WeightScheme
from lightning_mpq.quantizers.damped_moment import OrderedMoment
from lightning_mpq.quantizers.input_moments import InputMoment
from lightning_mpq.quantizers.output_error import output_error
from lightning_mpq.quantizers.second_order import round_rows
from lightning_mpq.quantizers.unseen_error import relative_cost, unit_errors, unseen_error


def samples(count: int, columns: int, seed: int, groups: int = 1) -> torch.Tensor:
    """Rows of one distribution, whose columns correlate."""
    mixing = torch.randn(columns, columns, generator=torch.Generator().manual_seed(1)) / columns**0.5
    mixing += torch.eye(columns)
    return torch.randn(groups, count, columns, generator=torch.Generator().manual_seed(seed)).double() @ mixing.double()


def moment(rows: torch.Tensor) -> torch.Tensor:
    return rows.mT @ rows


@pytest.mark.parametrize(("count", "damping"), [(2000, 0.01), (200, 0.01), (100, 0.03), (60, 0.1)])
def test_it_tells_the_error_of_rounded_weights_on_other_samples(count, damping):
    columns = 40
    scheme = WeightScheme(3, rounding="second_order", clip="moment")
    told, measured = 0.0, 0.0
    for seed in range(8):
        seen, unseen = samples(count, columns, 2 * seed + 10), samples(5000, columns, 2 * seed + 11)
        weight = torch.randn(64, columns, generator=torch.Generator().manual_seed(seed))
        rounded = round_rows(weight, moment(seen) / count, [scheme], damping=damping)[0].quantized.dequantize()
        error = (rounded - weight)[None].double()
        on_seen = output_error(error, moment(seen) / count).sum()
        measured += float(output_error(error, moment(unseen) / 5000).sum() / on_seen) / 8
        told += unseen_error(moment(seen), moment(seen[:, ::2]), damping) / 8
    assert measured > 1
    assert told - 1 == pytest.approx(measured - 1, rel=0.4, abs=0.02)


def test_few_samples_tell_a_large_error_and_many_none():
    assert unseen_error(moment(few := samples(24, 64, 3)), moment(few[:, ::2]), 0.01) > 3
    assert unseen_error(moment(many := samples(20000, 16, 3)), moment(many[:, ::2]), 0.01) == pytest.approx(1, abs=0.01)


def test_nothing_is_told_where_one_half_is_empty():
    whole = moment(samples(50, 8, 0))
    assert unseen_error(whole, torch.zeros_like(whole), 0.01) == 1
    assert unseen_error(whole, whole, 0.01) == 1
    assert unseen_error(whole, whole / 0, 0.01) == 1


def test_groups_of_a_convolution_are_told_together_and_dead_ones_left_out():
    rows = samples(40, 9, 5, groups=3)
    alone = unseen_error(moment(rows[:2]), moment(rows[:2, ::2]), 0.02)
    rows[2] = 0
    assert unseen_error(moment(rows), moment(rows[:, ::2]), 0.02) == pytest.approx(alone)


def test_a_column_that_only_one_half_saw_does_no_harm():
    rows = samples(40, 8, 5)
    rows[:, 1::2, 3] = 0
    half = moment(rows[:, ::2]).float()
    assert 1 <= unseen_error(moment(rows), half.double(), 0.01) < float("inf")


def test_costs_are_shares_of_what_errors_cost_alone():
    matrix = moment(samples(400, 12, 2))
    signs, ordered = unit_errors(matrix, 12)[None], OrderedMoment.of(matrix)
    assert relative_cost(ordered.damped(1e9).fed_on(signs), ordered) == pytest.approx(
        float(output_error(signs, matrix).mean() / matrix.diagonal(dim1=1, dim2=2).sum())
    )
    assert relative_cost(ordered.damped(0.01).fed_on(signs), ordered) < 1


def test_a_moment_puts_every_other_batch_into_one_half():
    layer, rows = nn.Linear(6, 2), samples(32, 6, 4)[0].float()
    whole = InputMoment.of_layer(layer)
    for turn, batch in enumerate(rows.split(8)):
        whole.update(layer, batch, torch.Size([8, 2]), turn=turn)
    expected = moment(torch.cat([rows[:8], rows[16:24]]).double())
    torch.testing.assert_close(whole.half[0].double(), expected, rtol=1e-5, atol=1e-5)
    assert whole.unseen_error(0.01) == pytest.approx(unseen_error(whole.second, expected[None], 0.01), rel=1e-3)


def test_one_batch_is_halved_by_its_samples():
    layer, rows = nn.Linear(6, 2), samples(32, 6, 4)[0].float()
    single = InputMoment.of_layer(layer)
    single.update(layer, rows, torch.Size([32, 2]), halved=True)
    torch.testing.assert_close(single.half[0].double(), moment(rows[:16].double()), rtol=1e-5, atol=1e-5)


def test_a_lookup_has_no_halves():
    table = nn.Embedding(5, 3)
    looked_up = InputMoment.of_layer(table)
    looked_up.update(table, torch.tensor([[0, 1], [1, 4]]), torch.Size([2, 2, 3]))
    assert looked_up.half is None
    assert looked_up.unseen_error(0.01) == 1
