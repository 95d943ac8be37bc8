"""Loading never holds the whole float model: peak memory of a new process, against one that loads nothing."""

import sys

import pytest
import torch
from helpers.processes import run_python
from torch import nn

from lightning_mpq.export import save
from lightning_mpq.modules import empty_packed_model
from lightning_mpq.policy import BitPolicy
from lightning_mpq.schemes import WeightScheme
from lightning_mpq.trainer.checkpoints.checkpoint import POLICY_KEY

LAYERS, WIDTH = 6, 2048
FLOAT_BYTES = LAYERS * WIDTH * WIDTH * 4  # 96 MiB
CODE = """
import sys, torch
from torch import nn
from lightning_mpq import load
def peak():
    return 1024 * next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM:"))
with torch.device("meta"):
    model = nn.Sequential(*(nn.Linear({width}, {width}, bias=False) for _ in range({layers})))
before = peak()
{load}
print(peak() - before)
"""


LOADS = {"save": "load(sys.argv[1], model)", "checkpoint": "load(sys.argv[1] + '/model.ckpt', model)"}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("way", LOADS)
def test_peak_memory_of_loading_is_a_small_part_of_the_float_model(tmp_path, way):
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)))
    policy = BitPolicy({str(index): WeightScheme(2) for index in range(LAYERS)})
    empty_packed_model(model, policy)
    with torch.no_grad():
        for layer in model:
            layer.packed_codes.random_(0, 256)
    save(model, tmp_path)
    torch.save({POLICY_KEY: policy.to_json(), "state_dict": model.state_dict()}, tmp_path / "model.ckpt")
    code = CODE.format(width=WIDTH, layers=LAYERS, load=LOADS[way])
    grown = int(run_python(code, tmp_path))
    packed_bytes = FLOAT_BYTES / 16
    assert packed_bytes <= grown < FLOAT_BYTES / 3, grown
