"""Intervals of metrics against those of a normal mean, and what has none."""

import math

import numpy as np
import pytest

from lightning_mpq.report.metric_values import MetricValues, intervals_of, joined


def test_the_interval_of_a_mean_is_that_of_its_standard_error():
    random = np.random.default_rng(1)
    means = random.normal(0.9, 0.05, 400)
    low, high = intervals_of({"acc": means.mean()}, {"acc": [(mean, 32.0) for mean in means]})["acc"]
    error = means.std() / math.sqrt(400)
    assert (low, high) == pytest.approx((means.mean() - 1.96 * error, means.mean() + 1.96 * error), abs=0.15 * error)


def test_batches_weigh_as_many_samples_as_they_have():
    """A last batch of one sample moves nothing, whatever it says."""
    batches = [(0.5, 100.0), (0.7, 100.0)] * 20
    value = np.average([0.6, 1.0], weights=[4000, 1])
    low, high = intervals_of({"acc": value}, {"acc": [*batches, (1.0, 1.0)]})["acc"]
    assert 0.55 < low < 0.6 < high < 0.65


@pytest.mark.parametrize(
    ("value", "batches"),
    [
        (0.5, [(0.5, 1.0)] * 7),  # too few
        (0.6, [(0.5, 1.0)] * 20),  # no mean of its batches, as an F1 score
        (0.5, [(0.5, 1.0)] * 19 + [(math.nan, 1.0)]),
        (0.0, [(0.0, 0.0)] * 20),
        (0.5, []),
    ],
)
def test_nothing_is_said_where_nothing_is_known(value, batches):
    assert intervals_of({"metric": value}, {"metric": batches}) == {}
    assert intervals_of({"metric": value}, {}) == {}


def test_batches_of_all_processes_count():
    parts = [{"acc": [(0.5, 2.0)]}, {"acc": [(0.7, 1.0)], "loss": [(0.1, 1.0)]}]
    assert joined(parts) == {"acc": [(0.5, 2.0), (0.7, 1.0)], "loss": [(0.1, 1.0)]}


def test_metrics_are_a_mapping_that_keeps_its_intervals():
    values = MetricValues({"acc": 0.5}, {"acc": (0.4, 0.6)})
    assert values == {"acc": 0.5}
    assert MetricValues(values).intervals == values.intervals
    assert MetricValues({"acc": 0.5}).intervals == {}
