"""What killed writers leave behind goes, what live ones are writing stays, and files get the user's permissions."""

import os
import signal

import pytest

from lightning_mpq.tools.files import write_bytes_atomically
from lightning_mpq.tools.temporaries import temporary_file, temporary_folder

pytestmark = pytest.mark.skipif(os.name != "posix", reason="kills processes")


def killed(work):
    """Run something in a process that dies within it."""
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def write_and_die(folder):
    with temporary_folder(folder) as (scratch, _):
        (scratch / "of-another-library.tmp").write_bytes(b"part")
        die()


def open_and_die(folder):
    with temporary_file(folder) as file:
        file.write(b"part")
        die()


@pytest.mark.parametrize("work", [write_and_die, open_and_die])
def test_the_next_writer_removes_what_a_killed_one_left(tmp_path, work):
    killed(lambda: work(tmp_path))
    assert os.listdir(tmp_path)
    write_bytes_atomically(tmp_path / "x", b"whole")
    assert os.listdir(tmp_path) == ["x"]


def test_what_another_one_is_writing_stays(tmp_path):
    with temporary_folder(tmp_path) as (scratch, _), temporary_file(tmp_path) as file:
        write_bytes_atomically(tmp_path / "x", b"whole")
        assert scratch.is_dir()
        assert os.path.exists(file.name)
    assert os.listdir(tmp_path) == ["x"]


def test_files_of_others_stay(tmp_path):
    for name in (".hidden", ".lightning_mpq.tmp.txt", "x.lightning_mpq.tmp"):
        (tmp_path / name).write_text("")
    (tmp_path / ".link.lightning_mpq.tmp").symlink_to(tmp_path / ".hidden")
    os.mkfifo(tmp_path / ".pipe.lightning_mpq.tmp")
    write_bytes_atomically(tmp_path / "x", b"whole")
    assert {".hidden", ".lightning_mpq.tmp.txt", "x.lightning_mpq.tmp"} <= set(os.listdir(tmp_path))


def test_a_writer_that_was_taken_for_a_leftover_begins_anew(tmp_path, monkeypatch):
    from lightning_mpq.tools import temporaries

    lock, removed = temporaries.fcntl.flock, []

    def too_late(file, how):
        if not removed:
            removed.append(file.name)
            os.unlink(file.name)
        return lock(file, how)

    monkeypatch.setattr(temporaries.fcntl, "flock", too_late)
    write_bytes_atomically(tmp_path / "x", b"whole")
    assert removed
    assert (tmp_path / "x").read_bytes() == b"whole"


@pytest.mark.parametrize("mask", [0o077, 0o022, 0o002])
def test_permissions_are_those_that_the_umask_asks_for(tmp_path, mask):
    before = os.umask(mask)
    try:
        path = write_bytes_atomically(tmp_path / "x", b"")
        with temporary_folder(tmp_path) as (_, permissions):
            pass
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == permissions == 0o666 & ~mask
