"""Files are written whole or not at all."""

import os

import pytest

from lightning_mpq.tools.files import unless_impossible, write_bytes_atomically, write_text_atomically


def test_folders_are_made_and_old_content_is_replaced(tmp_path):
    path = tmp_path / "a" / "b.json"
    assert write_text_atomically(path, "old") == path
    write_text_atomically(path, "new")
    assert path.read_text() == "new"
    assert os.listdir(path.parent) == ["b.json"]


def test_a_failure_in_between_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = write_text_atomically(tmp_path / "x", "old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_bytes_atomically(path, b"new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["x"]


def test_files_that_may_be_lost_are_warned_of_and_other_errors_are_raised(tmp_path):
    with (
        pytest.warns(UserWarning, match=f"The cache {tmp_path} cannot be used: .*directory.* Never mind."),
        unless_impossible("The cache", tmp_path, "Never mind."),
    ):
        write_bytes_atomically(tmp_path, b"")
    with pytest.raises(ValueError, match="another"), unless_impossible("The cache", tmp_path, "Never mind."):
        raise ValueError("another")
