"""What is held out is in neither part twice, about a fifth, and the same on all processes."""

import pytest
import torch
from torch import nn

from lightning_mpq.network.calibration import Calibration
from lightning_mpq.network.held_out import hold_out
from lightning_mpq.tools.distributed import rank, world_size


def numbered(sizes: list[int]) -> list[torch.Tensor]:
    """Return batches [n, 1] whose samples have numbers from 0."""
    return list(torch.arange(sum(sizes), dtype=torch.float32)[:, None].split(sizes))


def samples(calibration: Calibration | None) -> list[int]:
    return [] if calibration is None else [int(x) for batch in calibration.batches for x in batch[:, 0]]


@pytest.mark.parametrize(
    ("sizes", "held"),
    [
        ([4] * 4, [12, 13, 14, 15]),
        ([1] * 8, [3, 7]),
        ([1] * 10, [4, 9]),
        ([1] * 32, [4, 9, 15, 20, 25, 31]),
        ([2, 0, 2, 2, 2, 2], [8, 9]),
        ([10], [8, 9]),
        ([2], [1]),
        ([1], []),
        ([5, 5], [8, 9]),
        ([5, 5, 1], [10]),
        ([33, 65], list(range(78, 98))),
    ],
)
def test_a_fifth_is_held_out_by_batches_or_by_samples_of_the_last(sizes, held):
    fitted, judging = hold_out(Calibration(nn.Linear(1, 1), iter(numbered(sizes))))
    assert samples(judging) == held
    assert sorted(samples(fitted) + held) == list(range(sum(sizes)))
    assert samples(fitted) == sorted(samples(fitted))


def test_batches_that_cannot_be_cut_are_held_out_whole_or_not_at_all():
    def uneven(n: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.ones(4, n), torch.ones(n)

    model = nn.Linear(1, 1)
    fitted, judging = hold_out(Calibration(model, [uneven(1)]))
    assert judging is None
    assert len(fitted.batches) == 1
    fitted, judging = hold_out(Calibration(model, [uneven(1), uneven(2)]))
    assert (len(fitted.batches), len(judging.batches)) == (1, 1)
    assert hold_out(Calibration(model, [])).judging is None


def parts_of(sizes: list[list[int]]) -> tuple[list[int], list[int]]:
    fitted, judging = hold_out(Calibration(nn.Linear(1, 1), numbered(sizes[rank()])))
    return samples(fitted), samples(judging)


def test_all_processes_hold_out_or_none_does(pool):
    assert pool.run(parts_of, [[5], [10]]) == [([0, 1, 2, 3], [4]), ([*range(8)], [8, 9])]
    assert pool.run(parts_of, [[1], [10]]) == [([0], []), ([*range(10)], [])]


def of_this_rank(count: int) -> tuple[list[int], list[int]]:
    batches = numbered([1] * count)[rank() :: world_size()]
    fitted, judging = hold_out(Calibration(nn.Linear(1, 1), batches))
    return samples(fitted), samples(judging)


@pytest.mark.parametrize("count", [10, 32, 33])
def test_processes_together_hold_out_what_one_does(pool, count):
    (fitted, judging), (others, other_judging) = pool.run(of_this_rank, count)
    alone = of_this_rank(count)
    assert (sorted(fitted + others), sorted(judging + other_judging)) == alone
