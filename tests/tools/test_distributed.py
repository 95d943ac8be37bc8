"""Two processes: what they exchange, errors that both raise, and numbers equal to those of a single process."""

import warnings

import pytest
import torch
import torch.distributed as dist
from helpers.jobs import make_job
from helpers.process_pool import RankError
from helpers.profiles import plain_profile
from helpers.state import state_of
from torch import nn
from torch.nn.functional import cross_entropy

from lightning_mpq.allocation import Budget, CustomCost
from lightning_mpq.allocation.explanation import explain
from lightning_mpq.groups.candidates import make_candidates, offered_schemes
from lightning_mpq.groups.groups import find_groups
from lightning_mpq.modules import pack_model, packed_layers
from lightning_mpq.network.calibration import Calibration
from lightning_mpq.network.likelihood import Categorical
from lightning_mpq.network.loss_change import LossChange
from lightning_mpq.options import CurvatureOptions, RepairOptions
from lightning_mpq.pipeline.kept_sequence import KeptSequence
from lightning_mpq.policy import BitPolicy
from lightning_mpq.repair.batchnorm import measure_batchnorm, reestimate_batchnorm
from lightning_mpq.repair.biases import correct_biases
from lightning_mpq.repair.output_means import output_means
from lightning_mpq.rounding.independent import round_candidates
from lightning_mpq.rounding.sequential import round_sequentially
from lightning_mpq.tools import distributed
from lightning_mpq.tools.distributed import Rounds, errors_shared, gather, on_rank_zero, sum_over_ranks


def message_of(function, *arguments):
    """Return type, text and notes of what a function raises."""
    try:
        function(*arguments)
    except Exception as error:
        return type(error).__name__, str(error), getattr(error, "__notes__", [])
    return None


class Awkward(Exception):
    """Cannot be made again from its arguments, as pickle does."""

    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")


def exchange():
    rank = dist.get_rank()
    total = sum_over_ranks(torch.tensor([1.0, 0.1]).double() * (rank + 1))
    with distributed.alone():
        apart = distributed.active(), sum_over_ranks(torch.tensor(5)), gather(rank), on_rank_zero(dist.get_rank)
    sent = distributed.broadcast({"rank": rank, "tensor": torch.full((2,), float(rank))})
    layer = torch.nn.BatchNorm1d(2)
    layer.running_mean += rank
    distributed.share_buffers(layer)
    return {
        "sum": total,
        "alone": apart,
        "gathered": gather(rank),
        "sent": sent,
        "answer": on_rank_zero(lambda: (dist.get_rank(), distributed.world_size())),
        "mean": distributed.mean_over_ranks({"both": float(rank)} | ({"first": 3.0} if rank == 0 else {})),
        "buffer": layer.running_mean.tolist(),
        "facts": (distributed.active(), distributed.rank(), distributed.world_size()),
    }


def send_what_pickle_does_not_take():
    return distributed.on_rank_zero(lambda: {"rule": lambda: 1})


def test_what_cannot_be_sent_is_an_error_on_all_ranks(pool):
    with pytest.raises(RankError, match="(?s)cannot be sent.*rank 1:.*cannot be sent"):
        pool.run(send_what_pickle_does_not_take)


def test_exchange(pool):
    first, second = pool.run(exchange)
    for number, own in enumerate((first, second)):
        assert own["sum"].tolist() == [3.0, pytest.approx(0.3)]
        assert own["alone"] == (False, torch.tensor(5), [number], number)
        assert own["gathered"] == [0, 1]
        assert own["sent"]["rank"] == 0
        assert own["sent"]["tensor"].tolist() == [0.0, 0.0]
        assert own["answer"] == (0, 1)  # as if alone
        assert own["mean"] == {"both": 0.5, "first": 3.0}
        assert own["buffer"] == [0.0, 0.0]
        assert own["facts"] == (True, number, 2)
    assert torch.equal(first["sum"], second["sum"])


def failing(where, error):
    def work():
        if dist.get_rank() in where:
            raise error

    with errors_shared():
        work()


def failing_on_rank_zero():
    def work():
        assert dist.get_rank() == 0
        raise Awkward("a", "b")

    on_rank_zero(work)


@pytest.mark.parametrize("where", [(0,), (1,), (0, 1)])
def test_an_error_of_one_rank_is_raised_on_all(pool, where):
    messages = pool.run(message_of, failing, where, KeyError("lost"))
    for number, (kind, text, notes) in enumerate(messages):
        assert (kind, text) == ("KeyError", "'lost'")
        assert notes == ([] if number == where[0] else [f"(raised on rank {where[0]} of 2)"])


def test_an_error_on_rank_zero_is_raised_on_all_even_if_pickle_cannot_make_it_again(pool):
    own, other = pool.run(message_of, failing_on_rank_zero)
    assert own[:2] == ("Awkward", "a and b")
    assert other[:2] == ("RuntimeError", "Awkward: a and b")


def rounds_of(counts, failure=None):
    """Go through as many numbers as this rank's count; return own items and the sums of each round."""

    def items():
        for number in range(counts[dist.get_rank()]):
            if failure == ("loader", dist.get_rank(), number):
                raise OSError("disk")
            yield 10 * dist.get_rank() + number

    own, sums = [], []
    rounds = Rounds(items())
    for item in rounds:
        with rounds.step():
            own += item
            if failure == ("step", dist.get_rank(), len(own)):
                raise ArithmeticError("step")
        sums.append(int(sum_over_ranks(torch.tensor(sum(item)))))
    return own, sums


def test_rounds_go_on_until_the_last_rank_has_ended(pool):
    assert pool.run(rounds_of, (1, 3)) == [([0], [10, 11, 12]), ([10, 11, 12], [10, 11, 12])]
    assert pool.run(rounds_of, (0, 0)) == [([], [])] * 2


@pytest.mark.parametrize(
    ("counts", "failure", "expected"),
    [
        ((3, 3), ("step", 1, 2), ("ArithmeticError", "step")),
        ((3, 1), ("step", 1, 1), ("ArithmeticError", "step")),
        ((1, 3), ("loader", 1, 2), ("OSError", "disk")),
        ((2, 2), ("step", 0, 2), ("ArithmeticError", "step")),  # in the last round
    ],
)
def test_an_error_in_a_round_ends_all_ranks(pool, counts, failure, expected):
    for message in pool.run(message_of, rounds_of, counts, failure):
        assert message[:2] == expected


def test_a_rank_without_batches_is_named(pool):
    for kind, text, _ in pool.run(message_of, rounds_of, (2, 0)):
        assert kind == "ValueError"
        assert "of 2 processes rank 1 got none" in text


# What one process measures on all batches, two measure on half of them each.


def network() -> nn.Module:
    """Two convolutions with BatchNorm and a head, its statistics those of some data."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Flatten()
    )
    model = model.append(nn.Linear(16, 3))
    for _ in range(10):
        model(torch.randn(32, 1, 6, 6))
    return model.eval()


def batches(count: int = 5) -> list:
    generator = torch.Generator().manual_seed(1)
    sizes = [12 + 3 * number for number in range(count)]  # uneven
    return [
        (torch.randn(size, 1, 6, 6, generator=generator), torch.randint(3, (size,), generator=generator))
        for size in sizes
    ]


def own(items: list) -> list:
    """Return this rank's batches, interleaved as a DistributedSampler would."""
    return items[distributed.rank() :: distributed.world_size()]


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


def rounded_and_repaired():
    """Round, quantize and repair on this rank's batches; return codes and repaired tensors."""
    items = own(batches())
    model = network()
    groups = find_groups(model)
    rounded = round_candidates(model, items, groups, make_candidates(groups, schemes=offered_schemes([3])))
    policy = BitPolicy({c.group: c.scheme for c in rounded.candidates}, {g.name: g.layers for g in groups})
    by_order = round_sequentially(model, items, policy)
    codes = [rows.codes for rows in rounded.of_policy(policy).values()] + [r.codes for r in by_order.values()]
    change = LossChange(Calibration(model, items, likelihood=Categorical()), "divergence")
    means = output_means(model, items)
    before = measure_batchnorm(model, items)
    pack_model(model, policy, rounded.of_policy(policy))
    frozen = change.measure()
    correct_biases(model, items, means)
    biases = [layer.bias.detach().clone() for layer in (model[0], model[3], model[6])]
    reestimate_batchnorm(model, items, before=before)
    statistics = [value.clone() for index in (1, 4) for value in model[index].buffers()]
    return codes, [*biases, *statistics, *[s for b in before.values() for s in b]], [frozen, change.measure()]


def test_two_processes_round_and_repair_as_one_does(pool):
    first, second = pool.run(rounded_and_repaired)
    codes, repaired, changes = rounded_and_repaired()
    for one, other, single in zip(first[0], second[0], codes, strict=True):
        assert torch.equal(one, other)
        assert torch.equal(one, single)
    for one, other, single in zip(first[1], second[1], repaired, strict=True):
        assert torch.equal(one, other)
        torch.testing.assert_close(one, single, rtol=1e-5, atol=1e-6)
    assert first[2] == second[2]
    assert first[2] == pytest.approx(changes, rel=1e-4)
    assert changes[0] > 0


class OneMoreLayer(KeptSequence):
    """Dies after each new layer."""

    def keep(self, layer, found):
        super().keep(layer, found)
        raise RuntimeError(f"killed after {layer}")


def rounded_a_layer_at_a_time(folder):
    """Round in sequence on this rank's batches, with a death after every layer; return those layers, and the codes."""
    items, model, killed = own(batches()), network(), []
    policy = BitPolicy({g.name: offered_schemes([3])[0] for g in find_groups(model)})
    while True:
        try:
            kept = OneMoreLayer(folder, Calibration(model, items))
            found = round_sequentially(model, items, policy, kept=kept)
            return killed, [rows.codes for rows in found.values()]
        except RuntimeError as error:
            killed.append(str(error))


def test_two_processes_that_were_killed_go_on_at_the_same_layer(pool, tmp_path):
    first, second = pool.run(rounded_a_layer_at_a_time, tmp_path)
    assert first[0] == second[0] == [f"killed after {layer}" for layer in ("0", "3", "6")]
    model = network()
    policy = BitPolicy({g.name: offered_schemes([3])[0] for g in find_groups(model)})
    whole = round_sequentially(model, batches(), policy)
    for one, other, single in zip(first[1], second[1], whole.values(), strict=True):
        assert torch.equal(one, other)
        assert torch.equal(one, single.codes)


def synchronised_statistics():
    """Re-estimate SyncBatchNorm layers, which exchange statistics in every pass if they are let."""
    model = nn.SyncBatchNorm.convert_sync_batchnorm(network())
    reestimate_batchnorm(model, own(batches()))
    assert "forward" not in vars(model[1])
    return [buffer.clone() for buffer in model.buffers()]


def test_synchronised_batchnorm_is_measured_with_uneven_numbers_of_batches(pool):
    for found in pool.run(synchronised_statistics):
        for value, single in zip(found, synchronised_statistics(), strict=True):
            torch.testing.assert_close(value, single, rtol=1e-5, atol=1e-6)


def whole_job():
    """Run the pipeline with buffers that differ from rank to rank, which must not matter."""
    model = network()
    if distributed.rank():
        model[1].running_mean += 1
    seen = []

    def evaluate():
        seen.append(len(packed_layers(model)))
        return {"rank": float(distributed.rank())}

    budget = Budget(average_bits=4.5, custom=(CustomCost("layers", lambda group, scheme: 1.0),))
    repair = RepairOptions(sequential=False)  # what judges it is halved otherwise where something is held out
    pipeline = make_job(budget, curvature=CurvatureOptions(likelihood=Categorical()), repair=repair)
    outcome = pipeline.run(model, own(batches(10)), evaluate)
    state = state_of(model)
    report = outcome.report
    return (
        outcome.allocation.policy.to_json(),
        state,
        [row.measured_loss for row in report.models],
        report.samples,
        [row.metrics["rank"] for row in report.models],
        str(explain(outcome.allocation)),
        len(seen),
    )


def test_two_processes_quantize_as_one_does(pool):
    first, second = pool.run(whole_job)
    policy, state, losses, samples, _, explained, evaluated = whole_job()
    assert first[0] == second[0] == policy
    assert first[1].keys() == second[1].keys() == state.keys()
    for name, value in first[1].items():
        assert torch.equal(value, second[1][name]), name
        torch.testing.assert_close(value, state[name], rtol=1e-5, atol=1e-6, msg=name)
    assert first[2] == second[2]
    assert first[2] == pytest.approx(losses, rel=1e-3, abs=1e-6)
    assert first[3] == second[3] == samples
    assert first[4] == second[4] == [0.5] * len(losses)  # the mean over ranks
    assert first[5] == second[5]
    assert explained
    assert first[6] == second[6] == evaluated
