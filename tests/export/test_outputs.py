"""How far a runtime's outputs are from the model's: nothing passes because of numbers that are not compared."""

import pytest
import torch

from lightning_mpq.export.outputs import relative_error

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("found", "expected", "error"),
    [
        ([1.0, 3.0], [1.0, 4.0], 0.25),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([0.5, 0.0], [0.0, 0.0], 0.5),
        ([NAN, 3.0], [1.0, 4.0], INF),
        ([INF, 3.0], [1.0, 4.0], INF),
        ([NAN, 3.0], [NAN, 4.0], 0.25),
        ([-INF, 3.0], [-INF, 4.0], 0.25),
        ([0.0, 3.0], [NAN, 3.0], INF),
        ([NAN, 3.0], [INF, 3.0], INF),
        ([-INF, 3.0], [INF, 3.0], INF),
        ([3.0, -1e9, -1e9], [4.0, -1e9, -1e9], 0.25),
        ([3.0, -3e38, -3e38, -3e38], [4.0, -3e38, -3e38, -3e38], 0.25),
        ([3.0, 4.0, -1e9], [4.0, -1e9, -1e9], 1.0),
        ([3.0, -1e9], [4.0, -1e9], 1e-9),  # one outlier is an output like any other
        ([1.0, 0.0, 0.9], [1.0, 0.0, 1.0], 0.1),
        ([1.0, 0.1, 1.0], [1.0, 0.0, 1.0], 0.1),
    ],
)
def test_differences_are_relative_to_the_largest_number(found, expected, error):
    assert min(relative_error([torch.tensor(found)], [torch.tensor(expected)]), 1e300) == pytest.approx(
        min(error, 1e300), rel=1e-6
    )


def test_the_worst_output_counts_and_empty_ones_do_not():
    pairs = [([1.0], [1.0]), ([], []), ([NAN], [NAN]), ([3.0], [4.0])]
    found, expected = ([torch.tensor(pair[side]) for pair in pairs] for side in (0, 1))
    assert relative_error(found, expected) == 0.25
    assert relative_error([torch.empty(0)], [torch.empty(0)]) == 0.0


def test_what_holds_nothing_to_compare_is_refused():
    with pytest.raises(ValueError, match="is NaN or infinite, so that nothing can be compared; give other inputs"):
        relative_error([torch.full((3,), NAN)], [torch.full((3,), NAN)])
    with pytest.raises(ValueError, match=r"outputs of shapes \[\[2\]\], PyTorch \[\[3\]\]"):
        relative_error([torch.ones(2)], [torch.ones(3)])
