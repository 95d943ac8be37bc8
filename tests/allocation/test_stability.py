"""Policies on samples drawn again, against all policies tried on the very rows; and what nobody can draw from."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.taylor_models import every_plan, make_taylor

from lightning_mpq.allocation import Budget, Rules, allocate
from lightning_mpq.curvature import shrink
from lightning_mpq.curvature.accumulation import Accumulator
from lightning_mpq.curvature.estimators.measurement import Measurement


def of_rows(rows, loss="divergence", gradients=None, seed=0, groups=4, cluster=1):
    """A Taylor model of scores [N, rows, K], one sample each."""
    like = make_taylor(groups=groups, seed=seed)
    accumulator = Accumulator(like.groups, like.candidates, "fisher", loss, "settings", 0, cluster)
    for number, sample in enumerate(rows):
        slope = None if gradients is None else gradients[number]
        accumulator.add(Measurement(1, rows=sample[None], gradient=slope))
    return accumulator.result()


def scores(samples, seed=0, rows=1, groups=4):
    """Scores that shrink with the bits and share a direction, so that pairs of groups matter."""
    like = make_taylor(groups=groups, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    width = torch.tensor([float(c.scheme.bits) for c in like.candidates])
    shared = torch.randn(samples, rows, 1, generator=generator)
    return (torch.randn(samples, rows, len(width), generator=generator) + shared) * 2.0**-width


@pytest.mark.parametrize("loss", ["divergence", "task"])
@pytest.mark.parametrize("seed", range(4))
def test_every_draw_is_that_of_the_rows_and_its_best_policy_that_of_all(loss, seed):
    rows = scores(12, seed, rows=2)
    slopes = torch.randn(12, rows.shape[2]) * 0.01 if loss == "task" else None
    taylor = of_rows(rows, loss, slopes, seed)
    allocation = allocate(taylor, Budget(average_bits=4.5), gap=0.0)
    found = allocation.stability(resamples=15, seed=seed)

    random = np.random.default_rng(seed)
    policies = [p for p in every_plan(taylor) if taylor_cost(taylor, p) <= 4.5]
    taken = one_hot(taylor, policies)
    chosen, best, same = [], [], dict.fromkeys(allocation.policy, 0)
    for _ in range(15):
        drawn = random.integers(12, size=11).tolist()
        again = of_rows(rows[drawn], loss, None if slopes is None else slopes[drawn], seed)
        values = taken @ again.gradient.double() + (taken @ again.curvature.double() * taken).sum(1) / 2
        least = policies[int(values.argmin())]
        chosen.append(again.predict(allocation.policy).value)
        best.append(again.predict(least).value)
        for name, scheme in least.items():
            same[name] += scheme.bits == allocation.policy[name].bits
    assert found.shares == pytest.approx({name: count / 15 for name, count in same.items()})
    assert found.spread == pytest.approx(np.std(chosen, ddof=1), rel=1e-4)
    assert found.interval == pytest.approx(tuple(np.quantile(chosen, [0.05, 0.95])), rel=1e-4)
    excess = (np.array(chosen) - best) / np.maximum(np.abs(best), allocation.reference)
    assert found.near_best == np.mean(excess <= 0.01)
    assert found.excess == pytest.approx(np.median(excess), abs=1e-4)
    assert found.blocks == 12


def one_hot(taylor, policies):
    """Return [policies, candidates], with ones at the candidates that a policy takes."""
    places = {(candidate.group, candidate.scheme): place for place, candidate in enumerate(taylor.candidates)}
    taken = torch.zeros(len(policies), len(places), dtype=torch.float64)
    for row, policy in zip(taken, policies, strict=True):
        row[[places[group, scheme] for group, scheme in policy.items()]] = 1
    return taken


def taylor_cost(taylor, policy):
    weights = sum(group.weight_count for group in taylor.groups)
    return sum(group.stored_bits(policy[group.name]) for group in taylor.groups) / weights


def test_the_spread_is_the_standard_error_of_the_prediction():
    """That of the shrunk model too, whose entries are drawn as they were shrunk."""
    taylor = shrink(of_rows(scores(400)))
    allocation = allocate(taylor, Budget(average_bits=4.5))
    assert allocation.stability(resamples=300).spread == pytest.approx(allocation.prediction_error, rel=0.1)


def test_the_seed_decides_everything():
    allocation = allocate(of_rows(scores(40)), Budget(average_bits=4.5))
    first = allocation.stability(resamples=10, seed=3)
    assert first == allocation.stability(resamples=10, seed=3)
    assert first != allocation.stability(resamples=10, seed=4)
    assert first.to_dict()["shares"] == first.shares


def test_rows_of_one_sample_are_drawn_together():
    """Rows that cancel within every sample cancel in every draw."""
    rows = scores(8)
    taylor = of_rows(torch.cat([rows, rows.flip(0)], 1))
    allocation = allocate(taylor, Budget(average_bits=4.5))
    assert allocation.stability(resamples=20).blocks == 8


def test_samples_of_one_document_are_drawn_together():
    """Samples said four times are as good as said once, if the profile is told; else they flatter."""
    rows = scores(12)
    once = allocate(of_rows(rows), Budget(average_bits=4.5)).stability(resamples=30)
    copies = rows.repeat_interleave(4, 0)
    told = allocate(of_rows(copies, cluster=4), Budget(average_bits=4.5))
    found = told.stability(resamples=30)
    assert found.blocks == 12
    assert found.shares == once.shares
    assert found.spread == pytest.approx(once.spread, rel=1e-4)
    untold = allocate(of_rows(copies), Budget(average_bits=4.5))
    assert untold.prediction_error < 0.75 * told.prediction_error


@pytest.mark.parametrize("chunk", [1, 5, 48])
def test_clusters_are_those_of_the_data_however_they_are_measured(chunk):
    like, rows = make_taylor(), scores(48)
    accumulator = Accumulator(like.groups, like.candidates, "fisher", "divergence", "settings", 0, 3)
    for part in rows.split(chunk):
        accumulator.add(Measurement(len(part), rows=part))
    blocks = accumulator.result().sums["blocks.curvature"]
    expected = torch.stack([part.flatten(0, 1).T @ part.flatten(0, 1) for part in rows.split(3)])
    torch.testing.assert_close(blocks, expected)


def test_the_additive_program_is_drawn_again_where_that_was_solved():
    taylor = of_rows(scores(30))
    allocation = allocate(taylor, Budget(average_bits=4.5), objective="additive")
    alone = allocate(
        replace(taylor, curvature=torch.diag(taylor.curvature.diagonal())), Budget(average_bits=4.5), gap=0.0
    )
    found = allocation.stability(resamples=20)
    assert found.shares == alone.stability(resamples=20).shares
    assert found.excess >= 0


def test_rules_are_kept():
    taylor = of_rows(scores(30))
    rules = Rules(equal=[["block0.*"]], max_distinct_bits=2)
    found = allocate(taylor, Budget(average_bits=4.5), rules=rules).stability(resamples=20)
    assert found.shares["block0.layer0"] == found.shares["block0.layer1"]
    assert 0 <= found.kept <= 1


def test_samples_that_all_say_the_same_are_told():
    rows = scores(1).expand(20, -1, -1)
    found = allocate(of_rows(rows), Budget(average_bits=4.5)).stability(resamples=5)
    assert set(found.shares.values()) == {1.0}
    assert found.near_best == 1.0
    assert "All samples predict the same" in str(found)
    assert "say little" in allocate(of_rows(scores(3)), Budget(average_bits=4.5)).stability(resamples=5).note


@pytest.mark.parametrize("resamples", [0, -1, True, 2.5])
def test_resamples_are_counted(resamples):
    allocation = allocate(of_rows(scores(10)), Budget(average_bits=4.5))
    with pytest.raises(ValueError, match="resamples must be a positive integer"):
        allocation.stability(resamples=resamples)


def test_nobody_draws_from_one_sample_or_for_the_fewest_bytes():
    for taylor in (of_rows(scores(1)), make_taylor()):
        with pytest.raises(ValueError, match="profile at least 2 samples"):
            allocate(taylor, Budget(average_bits=4.5)).stability()
    with pytest.raises(ValueError, match="fewest bytes for a loss; allocate with bytes="):
        allocate(of_rows(scores(10)), Budget(max_loss=1e9)).stability()
