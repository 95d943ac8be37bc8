"""Script of the test that compares two processes with one. Arguments: output folder, number of processes."""

import os
import sys
from datetime import timedelta
from pathlib import Path

import lightning as L
import torch
from helpers.trainer import SmallClassifier, make_trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

from lightning_mpq import MixedPrecisionQuantization
from lightning_mpq.options import FinetuneOptions, RepairOptions
from lightning_mpq.policy import BitPolicy
from lightning_mpq.schemes import WeightScheme


class Smooth(SmallClassifier):
    """No layer that looks at a batch as a whole, so that two halves of a batch make the gradient of the whole."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(36, 12), nn.Tanh(), nn.Linear(12, 3))


def main(folder: Path, processes: int) -> None:
    torch.set_num_threads(1)
    L.seed_everything(0, verbose=False)
    module = Smooth()
    images, labels = torch.randn(64, 1, 6, 6, dtype=torch.float64), torch.arange(64) % 3
    # Lightning's own sampler would shuffle. Rank r takes every sample r, r + 2, ... of the batches of a single process.
    sampler = DistributedSampler(labels.tolist(), processes, int(os.environ.get("LOCAL_RANK", 0)), shuffle=False)
    loader = DataLoader(TensorDataset(images, labels), batch_size=16 // processes, sampler=sampler)
    mixed = MixedPrecisionQuantization(
        8.0,
        policy=BitPolicy({"network.1": WeightScheme(bits=2, granularity=9), "network.3": WeightScheme(bits=3)}),
        repair=RepairOptions(biases=False),
        finetune=FinetuneOptions(epochs=3, learning_rate=1.0, distill=0.5),
        compare=False,
        report_path=None,
    )
    settings: dict = {"precision": "64-true", "max_epochs": 1, "gradient_clip_val": 0.5, "accumulate_grad_batches": 2}
    if processes > 1:
        settings["strategy"] = DDPStrategy(process_group_backend="gloo", timeout=timedelta(seconds=200))
    trainer = make_trainer(folder, mixed, devices=processes, **settings)
    trainer.fit(module, loader)
    torch.save(module.state_dict(), folder / f"{processes}-{trainer.global_rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
