import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.idx_files import idx_bytes

from lightning_mpq.demo.idx import read_idx

ARRAY = np.arange(2 * 3 * 5).reshape(2, 3, 5)


@pytest.mark.parametrize("zipped", [False, True])
def test_reads_what_was_written(tmp_path: Path, zipped: bool) -> None:
    content = idx_bytes(ARRAY)
    path = tmp_path / "file"
    path.write_bytes(gzip.compress(content) if zipped else content)
    tensor = read_idx(path)
    assert tensor.dtype == torch.uint8
    assert np.array_equal(tensor.numpy(), ARRAY)


def test_reads_the_example_of_the_format_byte_by_byte(tmp_path: Path) -> None:
    path = tmp_path / "labels"
    path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 2, 255]))
    assert read_idx(path).tolist() == [7, 2, 255]


GOOD = idx_bytes(ARRAY)
ZIPPED = gzip.compress(GOOD, mtime=0)  # without the time of day, which would be part of the names of tests


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (GOOD[:-1], r"is truncated: its shape \[2, 3, 5\] needs 46 bytes, it has 45"),
        (GOOD[:9], "is truncated"),
        (GOOD[:4], "is truncated"),
        (GOOD + b"x", "is too long"),
        (b"", "is not an IDX file: it begins with nothing"),
        (b"\x89PNG....", "is not an IDX file: it begins with 89 50 4e 47"),
        (b"\0\0\x0d\1\0\0\0\1\0\0\0\0", "holds items of IDX type 0x0d"),
        (ZIPPED[:-9], "is a damaged or truncated gzip file"),
        (ZIPPED[:15] + b"????" + ZIPPED[19:], "is a damaged or truncated gzip file"),
        (b"\x1f\x8bnot really", "is a damaged or truncated gzip file"),
    ],
)
def test_a_foreign_or_damaged_file_is_a_sentence(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "broken.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_idx(path)
    assert str(path) in str(caught.value)
