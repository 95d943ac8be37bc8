"""The clock by a timer that is set by hand."""

import numpy as np

from lightning_mpq.allocation.solver.clock import Clock


class Timer:
    """A timer whose time is an attribute."""

    now = 0.0

    def __call__(self):
        """Return it."""
        return self.now


def test_what_fits_is_learned_from_what_was_measured():
    timer = Timer()
    clock = Clock(10.0, timer)
    assert clock.fits(1e9)
    clock.measured(1e9, 20.0)
    assert not clock.fits(1e9)
    clock.measured(1e3, 1e-9)  # too small to teach anything
    assert not clock.fits(1e9)
    clock.learn(np.eye(2000))  # a corner says nothing once whole steps were measured
    assert not clock.fits(1e9)


def test_a_part_is_of_what_is_left():
    timer = Timer()
    clock = Clock(10.0, timer)
    timer.now = 4.0
    used = clock.part(0.5)
    assert not used()
    timer.now = 7.0
    assert used()
    assert not clock.out_of_time()
    assert not Clock(np.inf, timer).part(0.3)()
