"""What stands where a file is expected may be a pipe, a device, a giant or a loop: a sentence, at once."""

import os

import pytest
from helpers.special_files import make

from lightning_mpq.tools.reading import open_ordinary, parse_json, read_bytes, read_text, require_ordinary

pytestmark = pytest.mark.skipif(os.name != "posix", reason="makes links and pipes")
KINDS = ["pipe", "device", "folder", "giant", "loop", "nothing"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_small_file_is_refused(tmp_path, kind):
    path = make(kind, tmp_path / "x")
    with pytest.raises(OSError if kind in ("loop", "nothing") else ValueError, match=str(path)):
        read_bytes(path)
    if kind != "giant":
        for look in (open_ordinary, require_ordinary):
            with pytest.raises((OSError, ValueError), match=str(path)):
                look(path)


def test_links_are_followed_and_text_is_unicode(tmp_path):
    (tmp_path / "file").write_text("größer")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert read_text(tmp_path / "link") == "größer"
    assert len(read_bytes(tmp_path / "link")) == require_ordinary(tmp_path / "link").st_size


def test_a_file_without_a_size_is_read_up_to_the_most(tmp_path):
    if not os.path.exists("/proc/self/maps"):
        pytest.skip("needs /proc")
    from pathlib import Path

    maps = Path("/proc/self/maps")
    assert maps.stat().st_size == 0
    assert read_bytes(maps)
    with pytest.raises(ValueError, match="11 bytes; expected at most 10"):
        read_bytes(maps, most=10)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "", "{", "1" * 5000, "[1,]"])
def test_broken_json_is_one_kind_of_error(text):
    with pytest.raises(ValueError, match=r".+"):
        parse_json(text)
