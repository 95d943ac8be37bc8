"""Script of the FSDP test: Lightning starts it once more for the second process. Arguments: output folder, case.

``one`` trains nothing: a single process quantizes the weights that the two of ``two`` have written.
"""

import copy
import json
import sys
from pathlib import Path

import lightning as L
import torch
from helpers.scripts.ddp_fit import digest
from helpers.trainer import make_trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_mpq import MixedPrecisionQuantization, RepairOptions, SelectionOptions, load, save
from lightning_mpq.modules import packed_layers

BATCHES = 10  # of which each of two processes holds one out


class Words(L.LightningModule):
    """A tied embedding and two blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(12, 8), nn.Linear(8, 12, bias=False)
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)) for _ in range(2)))

    def configure_model(self) -> None:
        if getattr(self, "_device_mesh", None) is not None and not hasattr(self, "cut"):
            self.cut = True
            for block in self.blocks:
                fully_shard(block, mesh=self._device_mesh["data_parallel"])
            fully_shard(self, mesh=self._device_mesh["data_parallel"])

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.embedding(tokens).mean(1)))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.training_step(batch, batch_idx), sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.03)

    def _loader(self) -> DataLoader:
        tokens = torch.randint(0, 12, (80, 5), generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(tokens, tokens[:, 0]), batch_size=8)

    train_dataloader = val_dataloader = _loader

    def calibration_dataloader(self) -> list:
        return list(self._loader())  # whole batches are shared out, and are the same for one process and for two


class Witness(L.Callback):
    """Notes whether parameters are cut before the callback works."""

    def on_train_end(self, trainer, pl_module):
        self.cut = any(isinstance(parameter, DTensor) for parameter in pl_module.parameters())


class Floats(MixedPrecisionQuantization):
    """Writes the float weights when they are whole."""

    folder: Path

    def on_train_end(self, trainer, pl_module):
        before = self.job.pipeline.run

        def run(model, *arguments):
            if trainer.global_rank == 0:
                torch.save(copy.deepcopy(model.state_dict()), self.folder / "float.pt")
            return before(model, *arguments)

        self.job.pipeline.__dict__["run"] = run
        super().on_train_end(trainer, pl_module)


def quantization(folder: Path) -> Floats:
    plain = {"selection": SelectionOptions(policies=1, rounds=0, resamples=0)}
    # Rounding in sequence halves the batches by their numbers, which are others where each process holds one out.
    plain |= {"repair": RepairOptions(sequential=False, biases=False)}
    mixed = Floats(4.5, calibration_batches=BATCHES, **plain)
    mixed.folder = folder
    return mixed


def main(folder: Path, case: str) -> None:
    torch.set_num_threads(1)
    L.seed_everything(0, verbose=False)
    module = Words()
    mixed, witness = quantization(folder), Witness()
    if case == "one":
        module.load_state_dict(torch.load(folder / "float.pt"))
        mixed.quantize_trained(make_trainer(folder), module)
        rank, cut = "one", False
    else:
        strategy = ModelParallelStrategy(2, 1, process_group_backend="gloo", save_distributed_checkpoint=False)
        trainer = make_trainer(folder, witness, mixed, strategy=strategy, devices=2, max_epochs=4)
        trainer.fit(module)
        trainer.save_checkpoint(folder / "last.ckpt")
        rank, cut = f"rank{trainer.global_rank}", witness.cut
        if trainer.global_rank == 0:
            save(module, folder / "packed")
            assert digest(load(folder / "packed", Words())) == digest(module)
    result = {
        "cut": cut,
        "digest": digest(module),
        "packed": sorted(packed_layers(module)),
        "policy": mixed.policy.to_json(),
        "losses": [row.measured_loss for row in mixed.report.models],
        "types": sorted({type(parameter).__name__ for parameter in module.parameters()}),
    }
    (folder / f"{rank}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
