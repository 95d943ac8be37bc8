"""Locks are given back, have a timeout, and say who holds them; what only looks like a lock file is left alone."""

import os
import threading

import pytest

from lightning_mpq.tools import locks
from lightning_mpq.tools.locks import locked


@pytest.fixture
def hurried(monkeypatch):
    monkeypatch.setattr(locks, "SILENT_SECONDS", 0.05)
    monkeypatch.setattr(locks, "MOST_SECONDS", 0.2)


def test_one_holds_it_and_the_next_one_gets_it(tmp_path):
    path = tmp_path / "lock"
    for _ in range(2):
        with locked(path) as held:
            assert held
            assert f"process {os.getpid()} on " in path.read_text()
        assert path.read_text() == ""


def test_who_waits_says_for_whom_and_gives_up(tmp_path, hurried):
    path = tmp_path / "lock"
    with (
        locked(path),
        pytest.warns(UserWarning, match=f"Waiting for the lock {path}, which process {os.getpid()} on .* holds"),
        pytest.raises(TimeoutError, match=f"{path} has not come free .* process {os.getpid()} on .* holds it"),
        locked(path),
    ):
        pass


def test_a_holder_that_did_not_sign_is_another_process(tmp_path, hurried):
    fcntl = pytest.importorskip("fcntl")
    path = tmp_path / "lock"
    with path.open("w") as file:
        file.write("\x1b[31m anything")
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        with (
            pytest.warns(UserWarning, match="another process"),
            pytest.raises(TimeoutError, match="another process holds it"),
            locked(path),
        ):
            pass


def test_who_waits_long_enough_gets_it(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "SILENT_SECONDS", 0.01)
    path, go_on, within = tmp_path / "lock", threading.Event(), threading.Event()

    def hold():
        with locked(path):
            within.set()
            go_on.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    within.wait()
    warned = threading.Timer(0.1, go_on.set)
    warned.start()
    with pytest.warns(UserWarning, match="Waiting"), locked(path) as held:
        assert held
    holder.join()


@pytest.mark.skipif(os.name != "posix", reason="makes links and pipes")
@pytest.mark.parametrize("kind", ["link", "hard link", "pipe", "folder", "loop"])
def test_nothing_is_written_through_what_has_the_name_of_a_lock(tmp_path, kind):
    path, victim = tmp_path / "lock", tmp_path / "victim"
    victim.write_text("precious")
    makers = {
        "link": lambda: path.symlink_to(victim),
        "hard link": lambda: path.hardlink_to(victim),
        "pipe": lambda: os.mkfifo(path),
        "folder": path.mkdir,
        "loop": lambda: path.symlink_to(path),
    }
    makers[kind]()
    with locked(path) as held:
        assert not held
    assert victim.read_text() == "precious"


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_a_group_can_share_a_lock(tmp_path):
    before = os.umask(0o002)
    try:
        with locked(tmp_path / "lock"):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o664
