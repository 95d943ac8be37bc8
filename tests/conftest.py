"""Fixtures that several folders share."""

import logging
import threading

import pytest
from _pytest.doctest import DoctestModule
from hypothesis import HealthCheck, settings

pytest.register_assert_rewrite("helpers")
collect_ignore = ["helpers"]
# No test depends on how fast a machine is, or on luck: the examples are the same in every run.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
settings.load_profile("any machine")


@pytest.hookimpl(wrapper=True)
def pytest_collect_file():
    """Look for doctests in the package alone: one that passes over a test file it cannot import hides its tests too."""
    found = yield
    return [each for each in found if not isinstance(each, DoctestModule)]


@pytest.fixture(scope="session")
def pool():
    """Two processes joined by gloo, which live as long as the tests of this process."""
    from helpers.process_pool import ProcessPool

    processes = ProcessPool()
    yield processes
    processes.kill()


@pytest.fixture(autouse=True, scope="module")
def root_logger_as_it_was():
    """Take out what a library set on the root logger when it was imported, as onnxruntime's quantizers do.

    It writes to the stream of the test that imported it, which is closed in the tests after that.
    """
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield
    for handler in [each for each in root.handlers if type(each) is logging.StreamHandler and each not in before]:
        root.removeHandler(handler)
    root.setLevel(level)


@pytest.fixture
def no_thread_is_left():
    """Check that a test ends with the threads that it began with."""
    before = threading.active_count()
    yield
    assert threading.active_count() == before
