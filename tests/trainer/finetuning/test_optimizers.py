"""Optimizers of fine-tuning: the user's own, with the learned scales beside the weights, whatever their kind."""

from pathlib import Path

import lightning as L
import pytest
import torch
from helpers.finetuning import Kill, Killed, Recorder, TwoOptimizers, finetuning, fit, kind_of, same
from helpers.trainer import SmallClassifier, SmallData, make_trainer, trained
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger

from lightning_mpq.options import FinetuneOptions

pytestmark = pytest.mark.filterwarnings("ignore")


def test_two_optimizers_stepped_by_hand_get_the_scales_of_their_own_weights(tmp_path):
    groups = {}

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            if trainer.current_epoch == 2:
                groups["now"] = [optimizer.param_groups for optimizer in trainer.optimizers]
                groups["scales"] = list(mixed.finetuning.handle.parameters())

    L.seed_everything(0, verbose=False)
    module, mixed = TwoOptimizers(), finetuning()
    make_trainer(tmp_path, mixed, Watch()).fit(module, SmallData())
    assert kind_of(module) == "packed"
    body, head = groups["now"]
    assert [len(group["params"]) for group in body] == [8, 2]
    assert [len(group["params"]) for group in head] == [2, 1]
    assert {id(scale) for scale in groups["scales"]} == {id(p) for group in (body[1], head[1]) for p in group["params"]}
    assert (body[1]["weight_decay"], head[1]["weight_decay"]) == (0, 0)
    assert all((scale != 1).any() for scale in groups["scales"])
    with pytest.raises(ValueError, match="manual optimization"):
        make_trainer(tmp_path, finetuning(finetune=FinetuneOptions(distill=1.0))).fit(TwoOptimizers(), SmallData())


def test_learning_rates_decay_from_a_tenth_and_schedulers_rest(tmp_path):
    class Warm(SmallClassifier):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)
            total = self.trainer.estimated_stepping_batches
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.2, total_steps=total)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    rates = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    L.seed_everything(0, verbose=False)
    logger, recorder = CSVLogger(tmp_path), Recorder()
    options = FinetuneOptions(learning_rate=0.1, scale_learning_rate=0.5)
    trainer = make_trainer(
        tmp_path, finetuning(finetune=options), Watch(), recorder, LearningRateMonitor(), logger=logger
    )
    trainer.fit(Warm(), SmallData())
    assert len(rates) == 24
    assert [len(rate) for rate in rates] == [1] * 12 + [2] * 12
    expected = 0.02 * (1 + torch.cos(torch.pi * torch.arange(12) / 12)) / 2
    torch.testing.assert_close(torch.tensor([rate[0] for rate in rates[12:]]), expected)
    torch.testing.assert_close(torch.tensor([rate[1] for rate in rates[12:]]), expected / 2)
    assert (Path(logger.log_dir) / "metrics.csv").is_file()


def test_given_optimizers_are_used_and_the_modules_own_are_back_afterwards(tmp_path):
    kinds = []

    class Watch(L.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            kinds.append(type(trainer.optimizers[0]).__name__)

    options = FinetuneOptions(optimizers=lambda module: torch.optim.AdamW(module.parameters(), lr=0.01))
    _, module = trained(tmp_path, finetuning(finetune=options), Watch())
    assert kinds == ["SGD", "SGD", "AdamW", "AdamW"]
    assert isinstance(module.configure_optimizers(), torch.optim.SGD)


class ByLayer(SmallClassifier):
    """Asks the layers themselves for their weights, instead of ``parameters()``."""

    def configure_optimizers(self):
        first, last = self.network[0].weight, self.network[8].weight
        others = [p for p in self.parameters() if p is not first and p is not last]
        groups = [{"params": [first, last], "weight_decay": 1e-3}, {"params": others}]
        return torch.optim.SGD(groups, lr=0.05, momentum=0.9)


class OneGroup(SmallClassifier):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), lr=0.05, max_iter=2)


class Orthogonal(TwoOptimizers):
    def configure_optimizers(self):
        weights = [self.network[8].weight]
        others = [p for p in self.parameters() if p is not weights[0]]
        return [torch.optim.Muon(weights, lr=0.01), torch.optim.AdamW(others, lr=0.01)]


@pytest.mark.parametrize("make", [ByLayer, OneGroup, Orthogonal])
def test_optimizers_of_every_kind_move_weights_and_scales_and_resume(tmp_path, make):
    class Watch(L.Callback):
        scales: torch.Tensor

        def on_train_epoch_end(self, trainer, pl_module):
            handle = mixed.finetuning.handle
            if handle is not None:
                self.scales = torch.cat([scale.detach().flatten() for scale in handle.parameters()])

    def run(folder, mixed, *callbacks, **arguments):
        L.seed_everything(0, verbose=False)
        return fit(tmp_path / folder, *callbacks, mixed, module=make(), **arguments)[1]

    options = FinetuneOptions(learning_rate=0.5)
    watch, mixed = Watch(), finetuning(finetune=options)
    module = run("whole", mixed, watch)
    assert kind_of(module) == "packed"
    assert (watch.scales != 1).float().mean() > 0.5
    with pytest.raises(Killed):
        run("killed", finetuning(finetune=options), Kill("on_train_epoch_start", 3))
    other = run("resumed", finetuning(finetune=options), resume=tmp_path / "killed" / "last.ckpt")
    assert same(module.state_dict(), other.state_dict())
