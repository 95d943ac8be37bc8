"""How much room there is."""

from pathlib import Path

import pytest
import torch

from lightning_mpq.tools import room


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="only Linux says what is available")
def test_memory_that_is_available_can_be_had_and_a_thousandfold_cannot():
    found = room.available_bytes(torch.device("cpu"))
    assert found is not None
    assert 2**20 < found < 2**50


def test_nobody_knows_of_other_devices():
    assert room.available_bytes(torch.device("meta")) is None


def test_the_disk_of_a_folder_that_is_still_to_come(tmp_path):
    assert room.free_bytes(tmp_path / "a" / "b") == pytest.approx(room.free_bytes(tmp_path), rel=0.1)
