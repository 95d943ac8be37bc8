"""What is reported of long work: fractions of stages, and the time that is left."""

import pytest

from lightning_mpq.tools.progress import StageTimer, TimeLeft, with_time_left


def told(reports):
    """What is said of reports (seconds, fraction)."""
    said, now = [], [0.0]
    progress = TimeLeft(lambda fraction, message: said.append((fraction, message)), clock=lambda: now[0])
    for seconds, fraction in reports:
        now[0] = seconds
        progress(fraction, "work")
    return said


@pytest.mark.parametrize(
    ("seconds", "fraction", "words"),
    [
        (10.0, 0.5, "work, 10 s left"),
        (10.0, 0.01, "work, 16 min left"),
        (100.0, 0.01, "work, 2.8 h left"),
        (0.5, 0.5, "work"),  # too early to tell
        (10.0, 0.0, "work"),  # nothing is done yet
        (10.0, 1.0, "work, 0 s left"),
    ],
)
def test_the_time_left_follows_the_pace(seconds, fraction, words):
    assert told([(0.0, 0.0), (seconds, fraction)])[-1] == (fraction, words)


def test_what_was_done_before_the_first_report_is_no_pace():
    assert told([(0.0, 0.8), (10.0, 0.9)])[-1][1] == "work, 10 s left"


def test_the_time_left_is_said_once():
    progress = with_time_left(lambda fraction, message: None)
    assert with_time_left(progress) is progress


def test_a_stage_takes_the_job_from_one_fraction_to_another():
    said = []
    timer = StageTimer(lambda fraction, message: said.append((fraction, message)))
    with timer.stage("one"):
        timer.within(0.2, 0.6)(0.5, "half of it")
    assert said == [(pytest.approx(0.4), "half of it")]
    assert list(timer.seconds) == ["one"]
