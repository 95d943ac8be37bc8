"""How far a layer is fitted to its samples, against leaving samples out row by row."""

from itertools import product

import pytest
import torch

from lightning_mpq.quantizers import round_rows
from lightning_mpq.rounding.held_out import DAMPINGS, Fit, Half, choose_fit, target
from lightning_mpq.rounding.joint_moments import JointMoment
from lightning_mpq.schemes import WeightScheme

SCHEME = WeightScheme(3, grid="half", rounding="second_order", clip="moment")


def layer(rows: int, columns: int, samples: int, noise: float, seed: int = 0):
    """Return a weight, inputs x of the float model, and z that have come to differ."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    weight, mixing, tilt = draw(rows, columns), draw(columns, columns), draw(1, columns)
    x = draw(samples, columns) @ mixing / columns**0.5
    return weight, x, x + noise * draw(samples, columns) + 0.3 * noise * x * tilt


def moment_of(weight: torch.Tensor, x: torch.Tensor, z: torch.Tensor) -> JointMoment:
    shifted = (x - z) @ weight.T if len(weight) < weight.shape[1] else x - z
    return JointMoment((z.T @ z / len(z))[None], (shifted.T @ z / len(z))[None], len(z))


def fit_of(weight: torch.Tensor, parts: list[JointMoment]) -> Fit:
    return choose_fit([Half.of(weight[None], part) for part in parts])


def ridge(weight: torch.Tensor, x: torch.Tensor, z: torch.Tensor, damping: float) -> torch.Tensor:
    """Least squares with rows of ridge below, on the rows themselves."""
    root = (damping * z.square().mean() * len(z)) ** 0.5 * torch.eye(z.shape[1], dtype=z.dtype)
    return torch.linalg.lstsq(torch.cat([z, root]), torch.cat([x @ weight.T, root @ weight.T])).solution.T


def test_the_target_is_drawn_from_the_weight_to_least_squares_on_all_rows():
    weight, x, z = layer(3, 6, 40, 0.5)
    expected = weight + 0.7 * (ridge(weight, x, z, 0.05) - weight)
    torch.testing.assert_close(
        target(weight[None], moment_of(weight, x, z), Fit(0.7, 0.05, 0.0))(weight[None])[0], expected
    )
    assert torch.equal(target(weight[None], moment_of(weight, x, z), Fit(0.0, 0.05, 0.0))(weight[None])[0], weight)


@pytest.mark.parametrize(("samples", "noise"), [(20, 0.2), (20, 1.0), (60, 1.0), (400, 0.5)])
def test_strength_and_damping_are_those_of_the_least_error_on_rows_left_out(samples, noise):
    weight, x, z = layer(5, 12, samples, noise)
    halves = [(x[: samples // 2], z[: samples // 2]), (x[samples // 2 :], z[samples // 2 :])]

    def left_out(damping: float, strength: float) -> float:
        total = 0.0
        for fitted, (own_x, own_z) in zip(halves, halves[::-1], strict=True):
            aim = weight + strength * (ridge(weight, *fitted, damping) - weight)
            total += float((own_x @ weight.T - own_z @ aim.T).square().sum(1).mean())
        return total

    fit = fit_of(weight, [moment_of(weight, *half) for half in halves])
    errors = {pair: left_out(*pair) for pair in product(DAMPINGS, torch.linspace(0, 1, 21).tolist())}
    # Of so few columns the error may have a second minimum; the search stops at the first.
    assert left_out(fit.ridge, fit.strength) <= min(errors.values()) * (1.02 if samples < 60 else 1 + 1e-5)


@pytest.mark.parametrize("samples", [16, 60, 2000])
def test_error_feedback_is_damped_for_the_least_error_of_rounding_on_rows_left_out(samples):
    columns = 24
    weight, x, _ = layer(400, columns, samples, 0.0)
    halves = [moment_of(weight, half, half) for half in (x[: samples // 2], x[samples // 2 :])]

    def left_out(damping: float) -> float:
        total = 0.0
        for fitted, judge in zip(halves, halves[::-1], strict=True):
            rounded = round_rows(weight, fitted.own, [WeightScheme(8, rounding="second_order")], damping=damping)[0]
            error = rounded.quantized.dequantize(torch.float64) - weight
            total += float(((error @ judge.own[0]) * error).sum())
        return total

    errors = [left_out(damping) for damping in DAMPINGS]
    found = fit_of(weight, halves).feedback
    # Signs of rounding errors stand for all weights and widths; the minimum is flat.
    assert left_out(found) <= 1.05 * min(errors)


@pytest.mark.parametrize(("samples", "seed"), product([8, 24, 100, 1000], range(4)))
def test_no_choice_is_worse_than_nearest_on_inputs_that_were_not_seen(samples, seed):
    weight, x, _ = layer(64, 32, samples + 20000, 0.0, seed)
    own, unseen = x[:samples], x[samples:]
    halves = [moment_of(weight, half, half) for half in own.tensor_split(2)]
    fit = fit_of(weight, halves).with_twice_the_samples()
    fed, nearest = (
        round_rows(weight, moment_of(weight, own, own).own, [scheme], damping=fit.feedback)[0].quantized
        for scheme in (SCHEME, WeightScheme(3, grid="half", clip="mse"))
    )
    judge = unseen.T @ unseen / len(unseen)
    errors = [each.dequantize(torch.float64) - weight for each in (fed, nearest)]
    first, second = (((error @ judge) * error).sum(1) for error in errors)
    chance = (first - second).std() / len(weight) ** 0.5
    assert (first - second).mean() < 2 * chance


def test_with_all_samples_chance_has_half_the_variance():
    """The best s on n samples is a / (a + v) where a step's right part has the size a and its chance v."""
    assert Fit(0.5, 0.2, 0.1).with_twice_the_samples() == Fit(2 / 3, 0.1, 0.05)
    assert Fit(1.0, 0.2, 0.1).with_twice_the_samples().strength == 1
    assert Fit(0.0, 0.2, 0.1).with_twice_the_samples().strength == 0


def test_unpaired_rows_are_not_pulled_and_inputs_that_are_zero_are_no_obstacle():
    weight, x, z = layer(3, 6, 40, 0.5)
    assert fit_of(weight, [moment_of(weight, half, half) for half in z.split(20)]).strength == 0
    nothing = moment_of(weight, 0 * x[:20], 0 * z[:20])
    fit = fit_of(weight, [nothing, nothing])
    assert fit.strength == 0
    assert fit.feedback > 0
    assert fit_of(weight, [nothing, moment_of(weight, x[20:], z[20:])]).feedback > 0
