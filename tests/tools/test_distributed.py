"""Two processes: what they exchange, and errors that both raise."""

import pytest
import torch
import torch.distributed as dist
from helpers.process_pool import RankError
from helpers.two_processes import message_of

from lightning_mpq.tools import distributed
from lightning_mpq.tools.distributed import Rounds, errors_shared, gather, on_rank_zero, sum_over_ranks


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
