"""Script of the test that resumes a fit of two processes. Argument: output folder."""

import json
import sys
from datetime import timedelta
from pathlib import Path

import lightning as L
import torch
from helpers.finetuning import finetuning
from helpers.state import same
from helpers.trainer import SmallClassifier, SmallData, make_trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy

STEPS = (2, 3, 5, 6, 8)
"""Three are an epoch of each process."""


class Draw(L.Callback):
    """Lets no two processes draw the same, as Lightning's seed would have it."""

    def __init__(self, count: int) -> None:
        self.count = count

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        torch.rand(self.count + trainer.global_rank)


def main(folder: Path) -> None:
    torch.set_num_threads(1)

    def fit(name: str, resume: Path | None = None) -> tuple[int, dict]:
        L.seed_everything(0, verbose=False)
        module = SmallClassifier()  # which drops out
        keep = ModelCheckpoint(folder / name, every_n_train_steps=1, save_top_k=-1, filename="{step}")
        settings = {"devices": 2, "max_epochs": 1, "enable_checkpointing": True, "limit_val_batches": 0}
        strategy = DDPStrategy(process_group_backend="gloo", timeout=timedelta(seconds=200))
        trainer = make_trainer(
            folder, finetuning(), keep, Draw(0 if resume is None else 5), strategy=strategy, **settings
        )
        trainer.fit(module, SmallData(), ckpt_path=resume)
        return trainer.global_rank, module.state_dict()

    rank, whole = fit("whole")
    equal = {step: same(fit(f"from{step}", folder / "whole" / f"step={step}.ckpt")[1], whole) for step in STEPS}
    draws = torch.load(folder / "whole" / "step=8.ckpt", weights_only=True)
    states = draws["callbacks"]["MixedPrecisionQuantization"]["finetuning"]["random"]
    differ = not torch.equal(states[0]["now"]["torch"], states[1]["now"]["torch"])
    (folder / f"rank{rank}.json").write_text(json.dumps({"equal": equal, "differ": differ}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
