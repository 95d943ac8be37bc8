"""What processes of one profile must agree on, without any process."""

import pytest

from lightning_mpq.curvature.cache.ranks import check_parts, shares_of_ranks


def test_batches_that_two_processes_measured_are_counted():
    with pytest.warns(UserWarning, match="2 calibration batches were measured on more than one process"):
        check_parts([("", ["a", "b"]), ("", ["b", "c", "a"])])


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ([("", []), ("", [])], "nothing to profile on"),
        ([("Categorical()", ["a"]), ("Gaussian()", ["b"])], r"took Categorical\(\) and Gaussian\(\) on different"),
    ],
)
def test_what_cannot_be_merged_is_refused(parts, said):
    with pytest.raises(ValueError, match=said):
        check_parts(parts)


def test_each_earlier_measurement_is_used_once():
    first, second = shares_of_ranks(["a", "a", "b", "gone"], [["a", "c"], ["a", "a", "b"]])
    assert dict(first) == {"a": 1}
    assert dict(second) == {"a": 1, "b": 1}
