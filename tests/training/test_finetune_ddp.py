"""Two processes fine-tune to the same model, which is the one that a single process comes to on the same data."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from ddp_finetune import main as fit_alone
from finetune_cases import same

pytestmark = pytest.mark.filterwarnings("ignore")
HERE = Path(__file__).parent


def fit_by_two(folder: Path) -> None:
    """Run the script, which becomes two processes."""
    path = os.pathsep.join([str(HERE.parents[1]), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, str(HERE / "ddp_finetune.py"), str(folder), "2"],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        text=True,
    )
    try:
        output, _ = process.communicate(timeout=240)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the second process, if it is still there
    assert process.returncode == 0, output


def test_two_processes_come_to_the_model_of_one(tmp_path):
    fit_by_two(tmp_path)
    fit_alone(tmp_path, 1)
    first, second, alone = (torch.load(tmp_path / name) for name in ("2-0.pt", "2-1.pt", "1-0.pt"))
    assert same(first, second)
    assert first.keys() == alone.keys()
    for name, value in alone.items():
        if value.is_floating_point():
            torch.testing.assert_close(first[name], value, rtol=1e-9 if value.dtype == torch.float64 else 1e-2, atol=0)
        else:
            assert torch.equal(first[name], value), name
    assert (alone["network.1.scale"].float().diff() != 0).any()
