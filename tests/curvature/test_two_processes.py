"""Two processes profile what one does on all batches, end together, and share a cache."""

import warnings

import pytest
import torch
from helpers.profiles import plain_profile
from helpers.two_processes import batches, message_of, network, own
from torch import nn
from torch.nn.functional import cross_entropy

from lightning_mpq.groups.candidates import offered_schemes
from lightning_mpq.groups.groups import find_groups
from lightning_mpq.network.likelihood import Categorical
from lightning_mpq.policy import BitPolicy
from lightning_mpq.rounding.independent import round_candidates
from lightning_mpq.rounding.sequential import round_sequentially
from lightning_mpq.tools import distributed


def class_loss(model, batch):
    return cross_entropy(model(batch[0]), batch[1])


SETTINGS = {
    "fisher": {"estimator": "fisher"},
    "fisher of batches": {"estimator": "fisher", "statistics": "reestimated", "chunk_size": 8, "draws": 2},
    "task": {"estimator": "fisher", "loss": "task"},
    "gauss_newton": {"estimator": "gauss_newton"},
    "hessian": {"estimator": "hessian"},
}


def taylor_of(name, items, **more):
    settings = {"bits": [2, 4], "likelihood": Categorical(), "loss_fn": class_loss} | SETTINGS[name] | more
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return plain_profile(network().double(), [(x.double(), y) for x, y in items], **settings)


def measured_by_ranks(name):
    taylor = taylor_of(name, own(batches()))
    return taylor.gradient, taylor.curvature, taylor.gradient_error, taylor.curvature_error, *facts_of(taylor)


def facts_of(taylor):
    return taylor.samples, taylor.fingerprint, sorted(taylor.batch_hashes)


@pytest.mark.parametrize("name", SETTINGS)
def test_two_processes_profile_what_one_does(pool, name):
    whole = taylor_of(name, batches())
    first, second = pool.run(measured_by_ranks, name)
    for one, other in zip(first[:4], second[:4], strict=True):
        assert torch.equal(one, other)  # bit for bit, so that all ranks go on alike
    expected = (whole.gradient, whole.curvature, whole.gradient_error, whole.curvature_error)
    for value, single in zip(first[:4], expected, strict=True):
        torch.testing.assert_close(value, single, rtol=1e-5, atol=1e-12)
    assert first[4:] == second[4:]
    assert first[4:6] == facts_of(whole)[:2]
    assert float(whole.curvature_error.max()) > 0


def stopped_early():
    items = [batches(5)[number % 5] for number in range(40)]
    items = [(x + 0.01 * number, y) for number, (x, y) in enumerate(items)]
    taylor = taylor_of("fisher", own(items) if distributed.active() else items, tolerance=0.25)
    return len(taylor.batch_hashes), float(taylor.curvature.sum())


def test_tolerance_ends_all_ranks_at_once(pool):
    first, second = pool.run(stopped_early)
    assert first == second
    with distributed.alone():
        alone, _ = stopped_early()
    assert 8 <= alone < 40
    assert first[0] in (alone, alone + 1)  # looked at after each round of two


def interrupted_and_resumed(folder):
    """Measure three batches, then all five, then all five again with another division among ranks."""
    reports = []

    def tell(fraction, message):
        reports.append(message)

    taylor_of("fisher", own(batches()[:3]), cache_dir=folder)
    taylor = taylor_of("fisher", own(batches()), cache_dir=folder)
    turned = batches()[2:] + batches()[:2]
    again = taylor_of("fisher", own(turned), cache_dir=folder, progress=tell)
    return taylor.curvature, facts_of(taylor), again.curvature, facts_of(again)[:2], reports


def test_the_cache_is_rank_zeros_and_serves_all(pool, tmp_path):
    whole = taylor_of("fisher", batches())
    for curvature, facts, again, facts_again, reports in pool.run(interrupted_and_resumed, tmp_path):
        torch.testing.assert_close(curvature, whole.curvature, rtol=1e-5, atol=1e-12)
        assert facts == facts_of(whole)
        assert torch.equal(again, curvature)
        assert facts_again == facts[:2]
        assert len(reports) == 1
        assert "found in" in reports[0]
    assert len(list(tmp_path.iterdir())) == 2  # of three batches, and of five


class Different:
    """Models that are not the same on all ranks."""

    @staticmethod
    def statistics():
        model = network()
        model[1].running_mean += distributed.rank()
        plain_profile(model, own(batches()), bits=[4], likelihood=Categorical())

    @staticmethod
    def repaired_statistics():
        model = network()
        model[1].running_mean += distributed.rank()
        distributed.share_buffers(model)
        plain_profile(model, own(batches()), bits=[4], likelihood=Categorical())

    @staticmethod
    def layers():
        model = network()
        with torch.random.fork_rng():  # later cases draw the same numbers on all ranks
            model[6] = nn.Linear(model[6].in_features, 3 + distributed.rank())
        return model

    @staticmethod
    def profiled_layers():
        plain_profile(Different.layers(), own(batches()), bits=[4], likelihood=Categorical())

    @staticmethod
    def rounded_layers():
        round_candidates(Different.layers(), own(batches()))

    @staticmethod
    def layers_in_sequence():
        model = Different.layers()
        policy = BitPolicy({g.name: offered_schemes([3])[0] for g in find_groups(model)})
        round_sequentially(model, own(batches()), policy)

    @staticmethod
    def guesses():
        model, labels = nn.Linear(4, 1), torch.zeros(8, 1) if distributed.rank() else torch.randn(8, 1)
        plain_profile(model, [(torch.ones(8, 4), labels)], bits=[4])

    @staticmethod
    def nothing():
        plain_profile(network(), own(batches(1)), bits=[4], likelihood=Categorical())

    @staticmethod
    def not_finite():
        broken = [(x * (torch.nan if x.shape[0] == 18 else 1), y) for x, y in batches()]
        plain_profile(network(), own(broken), bits=[4], likelihood=Categorical())


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("statistics", "different weights or buffers"),
        ("repaired_statistics", None),
        ("profiled_layers", "rank 0 alone of 0 and 1 has 6.bias [3]"),
        ("rounded_layers", "rank 0 alone of 0 and 1 has 6.bias [3]"),
        ("layers_in_sequence", "rank 0 alone of 0 and 1 has 6.bias [3]"),
        ("guesses", "on different processes; pass likelihood="),
        ("nothing", "of 2 processes rank 1 got none"),
        ("not_finite", "in batch 2"),
    ],
)
def test_ranks_that_cannot_go_on_together_say_so(pool, case, said):
    for found in pool.run(message_of, getattr(Different, case)):
        assert (found is None) == (said is None)
        assert said is None or said in found[1]
