"""Script of the DDP test: Lightning starts it once more for the second process. Arguments: output folder, settings."""

import hashlib
import json
import sys
from datetime import timedelta
from pathlib import Path

import lightning as L
import torch
from helpers.trainer import SmallClassifier, SmallData, make_trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from torch.nn.parallel import DistributedDataParallel

from lightning_mpq import Budget, MixedPrecisionQuantization
from lightning_mpq.allocation.explanation import explain
from lightning_mpq.modules import packed_layers


class Witness(L.Callback):
    """Notes what the callback finds at the end of training, before it works."""

    def on_train_end(self, trainer, pl_module):
        self.wrapped = isinstance(trainer.strategy.model, DistributedDataParallel)
        self.statistics = pl_module.network[1].running_mean.tolist()


class Broken(SmallData):
    """Calibration data that only the second process cannot use."""

    def calibration_dataloader(self):
        good, bad = (self.images[:16], self.labels[:16]), (self.images[:16] * torch.nan, self.labels[:16])
        return [good, bad]


def digest(module: torch.nn.Module) -> str:
    """Return a hash of the whole state, packed codes included."""
    found = hashlib.sha256()
    for name, value in module.state_dict().items():
        found.update(name.encode() + value.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def main(folder: Path, case: str) -> None:
    torch.set_num_threads(1)
    L.seed_everything(0, verbose=False)
    module, witness = SmallClassifier(), Witness()
    epochs = 1 if case == "finetune" else 0
    mixed = MixedPrecisionQuantization(Budget(average_bits=4.5), calibration_batches=6, finetune_epochs=epochs)
    keep = ModelCheckpoint(dirpath=folder / "checkpoints", save_last=True)
    strategy = DDPStrategy(process_group_backend="gloo", timeout=timedelta(seconds=200))
    settings = {"strategy": strategy, "devices": 2, "max_epochs": 1, "enable_checkpointing": True}
    # Validation would give BatchNorm statistics of rank 0 to all; without it they differ at the end of training.
    trainer = make_trainer(folder, witness, mixed, keep, check_val_every_n_epoch=5, **settings)
    message = ""
    try:
        trainer.fit(module, Broken() if case == "broken" else SmallData())
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
    report = {} if mixed.report is None else mixed.report.scalars()
    result = {
        "message": message,
        "wrapped": witness.wrapped,
        "statistics": witness.statistics,
        "digest": digest(module),
        "packed": sorted(packed_layers(module)),
        "policy": None if mixed.policy is None else mixed.policy.to_json(),
        "report": {name: value for name, value in report.items() if not name.startswith("seconds/")},
        "samples": None if mixed.taylor is None else mixed.taylor.samples,
        "explained": "" if mixed.allocation is None else str(explain(mixed.allocation)),
    }
    (folder / f"rank{trainer.global_rank}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
