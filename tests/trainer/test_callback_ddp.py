"""The callback in a fit of two processes under DDP, started as a user would, and the strategies that are refused."""

import json
from pathlib import Path

import pytest
import torch
from helpers.processes import run_two_processes
from helpers.trainer import SmallClassifier, SmallData, make_trainer
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from lightning_mpq import MixedPrecisionQuantization, load
from lightning_mpq.modules import packed_layers
from lightning_mpq.trainer.calibration_data import share_of_batches

pytestmark = pytest.mark.filterwarnings("ignore")


def fit(folder: Path, case: str) -> list[dict]:
    """Run the script, which becomes two processes, and return what each rank wrote."""
    run_two_processes("ddp_fit.py", folder, case)
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("case", ["plain", "finetune"])
def test_both_ranks_end_with_the_same_packed_model(tmp_path, case):
    first, second = fit(tmp_path, case)
    assert first["message"] == second["message"] == ""
    assert first["wrapped"]
    assert second["wrapped"]  # DistributedDataParallel was still there
    assert first["statistics"] != second["statistics"]  # so that there was something to make equal
    assert first["packed"] == ["network.0", "network.4", "network.8"]
    for key in ("packed", "digest", "policy", "report", "samples", "explained"):
        assert first[key] == second[key], key
    report = json.loads((tmp_path / "report.json").read_text())
    assert first["samples"] + report["held_out"] == 6 * 16  # all processes together
    assert report["held_out"] == 20  # half of them from each
    assert report["models"][3]["measured_loss"] == first["report"]["chosen/measured_loss"]
    assert [row["name"] for row in report["models"]][4:] == (["fine-tuned"] if case == "finetune" else [])
    module = load(tmp_path / "checkpoints" / "last.ckpt", SmallClassifier())
    assert sorted(packed_layers(module)) == first["packed"]


def test_an_error_of_one_rank_ends_both_and_leaves_a_float_model(tmp_path):
    first, second = fit(tmp_path, "broken")
    for own in (first, second):
        assert own["message"].startswith("NonFiniteError: ")
        assert own["packed"] == []
        assert own["policy"] is None
    assert not (tmp_path / "report.json").exists()


def test_processes_that_end_with_the_fit_are_refused(tmp_path):
    trainer = make_trainer(tmp_path, strategy="ddp_spawn", devices=2)
    with pytest.raises(ValueError, match="'spawn' end with the fit.*strategy='ddp'"):
        MixedPrecisionQuantization(4.0).setup(trainer, SmallClassifier(), "fit")


def test_what_is_done_outside_of_a_fit_takes_one_device(tmp_path):
    trainer = make_trainer(tmp_path, strategy=DDPStrategy(), devices=2)
    module = SmallClassifier()
    with pytest.raises(ValueError, match="quantize_trained works on one device.*DDPStrategy"):
        MixedPrecisionQuantization(4.0).quantize_trained(trainer, module, SmallData())
    assert not packed_layers(module)


@pytest.mark.parametrize("count", [1, 2, 5, 6])
def test_ranks_share_the_batches_that_one_process_would_take(monkeypatch, count):
    loader = [torch.tensor([number]) for number in range(8)]
    divided = []
    for rank in range(2):
        monkeypatch.setattr("lightning_mpq.trainer.calibration_data.rank", lambda rank=rank: rank)
        monkeypatch.setattr("lightning_mpq.trainer.calibration_data.world_size", lambda: 2)
        divided.append([int(batch) for batch in share_of_batches(loader, count)])
    assert sorted(divided[0] + divided[1]) == list(range(max(count, 2)))
    data = list(range(8))
    for rank in range(2):
        monkeypatch.setattr("lightning_mpq.trainer.calibration_data.rank", lambda rank=rank: rank)
        own = DataLoader(data, sampler=DistributedSampler(data, 2, rank, shuffle=False))
        taken = [int(batch) for batch in share_of_batches(own, count)]
        assert taken == list(range(rank, 8, 2))[: len(divided[rank])]
