"""The drawing of a report holds its numbers."""

from dataclasses import replace

import pytest
from helpers.reports import report_of
from helpers.taylor_models import make_taylor

plt = pytest.importorskip("matplotlib.pyplot")


def test_every_policy_is_a_point_where_it_belongs():
    report = report_of(make_taylor(4))
    figure, ax = report.plot()
    lines = {line.get_label(): line.get_xydata().tolist() for line in ax.get_lines()}
    expected = [[point.stored_bytes / 1e6, point.predicted_loss] for point in report.frontier.points]
    assert lines["best policies, predicted"] == expected
    assert lines["measured"] == [[row.stored_bytes / 1e6, row.measured_loss] for row in report.models[1:]]
    assert ax.get_yscale() == "log"
    plt.close(figure)


def test_it_draws_on_given_axes_and_without_a_frontier_too():
    figure, ax = plt.subplots()
    report = report_of(make_taylor(4))
    bare = replace(report, frontier=None, models=(replace(report.models[-1], measured_loss=-0.1),))
    assert bare.plot(ax) == (figure, ax)
    assert ax.get_yscale() == "linear"
    assert replace(bare, models=()).plot(ax) == (figure, ax)
    plt.close(figure)
