"""Two processes fine-tune to the model of a single one on the same data, and resume as if nothing had happened."""

import json

import pytest
import torch
from helpers.processes import run_two_processes
from helpers.scripts.ddp_finetune import main as fit_alone
from helpers.state import same

pytestmark = pytest.mark.filterwarnings("ignore")


def test_two_processes_come_to_the_model_of_one(tmp_path):
    run_two_processes("ddp_finetune.py", tmp_path, 2)
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


def test_each_process_resumes_with_its_own_random_numbers(tmp_path):
    run_two_processes("ddp_resume.py", tmp_path)
    for rank in range(2):
        found = json.loads((tmp_path / f"rank{rank}.json").read_text())
        assert found["differ"]  # so that one process's states would not do for the other
        assert found["equal"] == dict.fromkeys(found["equal"], True)
        assert len(found["equal"]) == 5
