"""The damping against the textbook estimator for independent rows, and against the best multiple of the identity."""

import pytest
import torch
from torch import nn

from lightning_mpq.quantizers.input_moments import InputMoment
from lightning_mpq.quantizers.ledoit_wolf import LEAST, MOST, UNKNOWN


def seen(batches: list[torch.Tensor], *, halved: bool = False) -> InputMoment:
    layer = nn.Linear(batches[0].shape[-1], 2)
    moment = InputMoment.of_layer(layer)
    for batch in batches:
        moment.update(layer, batch, torch.Size([*batch.shape[:-1], 2]), halved=halved)
    return moment


def test_of_single_rows_it_is_the_textbook_estimate():
    rows = (torch.randn(40, 6) @ torch.randn(6, 6)).double()
    moment = rows.T @ rows / 40
    unit = moment.diagonal().mean()
    # Equations 6 to 9 and lemma 3.2 to 3.4 there, for rows that are not centred.
    distance = (moment - unit * torch.eye(6)).square().sum()
    outer = rows[:, :, None] * rows[:, None]
    chance = (outer - moment).square().sum() / 40**2
    share = float(chance * 40 / 39 / distance)  # an unbiased variance of the mean; there it is divided by n
    found = seen([row[None] for row in rows]).damping()
    assert found == pytest.approx(share / (1 - share), rel=1e-4)


def test_batches_of_any_size_tell_the_same_on_average():
    torch.manual_seed(0)
    mixing, even, uneven, exact = torch.randn(12, 12), 0.0, 0.0, 0.0
    truth = (mixing.T @ mixing).double()
    for _ in range(200):
        rows = torch.randn(160, 12) @ mixing
        even += seen(list(rows.split(20))).damping()
        uneven += seen(list(rows.split([10, 60, 5, 35, 50]))).damping()
        moment = (rows.T @ rows / 160).double()
        share = float(
            (moment - truth).square().sum() / (moment - moment.diagonal().mean() * torch.eye(12)).square().sum()
        )
        exact += share / (1 - share)
    assert even == pytest.approx(exact, rel=0.15)
    assert uneven == pytest.approx(exact, rel=0.2)


def test_rows_of_one_sample_are_not_taken_to_be_independent():
    torch.manual_seed(0)
    rows = torch.randn(64, 1, 8) @ torch.randn(8, 8)
    once, repeated = seen(list(rows.split(8))), seen(list(rows.expand(-1, 50, -1).split(8)))
    assert repeated.damping() == pytest.approx(once.damping(), rel=1e-4)


def test_halves_of_one_batch_tell_what_two_batches_do():
    rows = torch.randn(30, 5) @ torch.randn(5, 5)
    assert seen([rows]).damping() == UNKNOWN
    assert seen([rows], halved=True).damping() == pytest.approx(seen(list(rows.split(15))).damping())


def test_it_stays_within_bounds():
    rows = torch.randn(20, 4) @ torch.randn(4, 4)
    assert seen([rows] * 3).damping() == LEAST
    assert seen([torch.eye(4)[:1] * 3, torch.eye(4)[1:2], torch.eye(4)[2:3]]).damping() <= MOST
    assert InputMoment.of_layer(nn.Linear(3, 2)).damping() == UNKNOWN
    assert InputMoment.of_layer(nn.Embedding(3, 2)).damping() == UNKNOWN
    assert seen([1e38 * rows, rows]).damping() > 0  # numbers too large to square are no obstacle


def test_two_layers_with_one_weight_tell_of_the_parts_of_both():
    rows = torch.randn(60, 5) @ torch.randn(5, 5)
    batches = list(rows.split(10))
    merged = seen(batches[:2]).merge(seen(batches[2:]))
    assert merged.damping() == pytest.approx(seen(batches).damping())
