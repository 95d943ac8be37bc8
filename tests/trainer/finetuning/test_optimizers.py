"""Optimizers of fine-tuning: the user's own, with the learned scales beside the weights, whatever their kind."""

from pathlib import Path

import lightning as L
import pytest
import torch
from helpers.finetuning import Kill, Killed, Recorder, TwoOptimizers, finetuning, fit, kind_of
from helpers.state import same
from helpers.trainer import SmallClassifier, SmallData, make_trainer, trained
from lightning.pytorch.callbacks import BackboneFinetuning, LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger

from lightning_mpq.modules import packed_layers
from lightning_mpq.options import CandidateOptions, FinetuneOptions

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


def test_ranges_of_inputs_learn_where_the_weights_of_their_layers_do_and_resume(tmp_path):
    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            self.groups = [optimizer.param_groups for optimizer in trainer.optimizers]
            if mixed.finetuning.handle is not None:
                self.learned = list(mixed.finetuning.handle.learned())
                self.scales = {name: float(found.scale) for name, found in mixed.finetuning.handle.ranges.items()}

    def of_inputs():
        return finetuning(6.0, candidates=CandidateOptions(bits=(4,), inputs=(5,)))

    def run(folder, mixed, *callbacks, **arguments):
        L.seed_everything(0, verbose=False)
        return fit(tmp_path / folder, *callbacks, mixed, module=TwoOptimizers(), **arguments)[1]

    watch, mixed = Watch(), of_inputs()
    module = run("whole", mixed, watch)
    ranges = {name: each.parameter for each in watch.learned if (name := each.name).endswith(".input")}
    assert set(ranges) == {"network.0.input", "network.4.input", "network.8.input"}
    body, head = ([{id(p) for p in group["params"]} for group in groups] for groups in watch.groups)
    assert {id(ranges["network.0.input"]), id(ranges["network.4.input"])} <= body[1]
    assert id(ranges["network.8.input"]) in head[1]
    assert all(float(parameter) != 1 for parameter in ranges.values())
    stored = {name: float(layer.input_scale) for name, layer in packed_layers(module).items()}
    assert stored == watch.scales
    with pytest.raises(Killed):
        run("killed", of_inputs(), Kill("on_train_epoch_start", 3))
    mixed = of_inputs()
    assert same(module.state_dict(), run("on", mixed, resume=tmp_path / "killed" / "last.ckpt").state_dict())


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


class Named(SmallClassifier):
    """Parameters with their names, in one group."""

    def configure_optimizers(self):
        return torch.optim.AdamW(self.named_parameters(), lr=0.01)


class NamedGroups(SmallClassifier):
    def configure_optimizers(self):
        groups = [{"params": list(self.network[:4].named_parameters("first"))}]
        groups.append({"params": list(self.network[4:].named_parameters("last")), "lr": 0.01})
        return torch.optim.SGD(groups, lr=0.05, momentum=0.9)


class NamedGroup(SmallClassifier):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.named_parameters(), lr=0.05, max_iter=2)


@pytest.mark.parametrize("make", [ByLayer, OneGroup, Orthogonal, Named, NamedGroups, NamedGroup])
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


class TellsItsRate(SmallClassifier):
    """Asks its scheduler for the rate in every step, as for a log."""

    def __init__(self, plateau):
        L.seed_everything(0, verbose=False)
        super().__init__()
        self.plateau, self.told = plateau, []

    def training_step(self, batch, batch_idx):
        scheduler = self.lr_schedulers()
        self.told.append((self.training, self.current_epoch, scheduler.get_last_lr(), self.rates()))
        assert self.trainer.lr_scheduler_configs[0].scheduler is scheduler
        self.log("rate", scheduler.get_last_lr()[0])
        return super().training_step(batch, batch_idx)

    def rates(self):
        return [group["lr"] for group in self.optimizers().param_groups]

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)
        if self.plateau:
            scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss"}}
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)]


@pytest.mark.parametrize("plateau", [False, True])
def test_a_module_may_ask_its_schedulers_for_the_rate_while_it_is_fine_tuned(tmp_path, plateau):
    options = FinetuneOptions(learning_rate=0.1)
    module = TellsItsRate(plateau)
    fit(tmp_path / "whole", finetuning(finetune=options), module=module)
    told = [each for training, epoch, *each in module.told if training and epoch >= 2]
    assert len(told) == 12
    assert all(last == rates for last, rates in told)
    expected = 0.005 * (1 + torch.cos(torch.pi * torch.arange(12) / 12)) / 2
    torch.testing.assert_close(torch.tensor([last[0] for last, _ in told]), expected)
    with pytest.raises(Killed):
        fit(
            tmp_path / "killed",
            finetuning(finetune=options),
            Kill("on_train_epoch_start", 3),
            module=TellsItsRate(plateau),
        )
    again = TellsItsRate(plateau)
    fit(tmp_path / "on", finetuning(finetune=options), module=again, resume=tmp_path / "killed" / "last.ckpt")
    assert same(module.state_dict(), again.state_dict())


class Unfreezes(SmallClassifier):
    """Takes its first layers into training by and by."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.network[4:].parameters(), lr=0.05, momentum=0.9)

    def on_train_epoch_start(self):
        if self.current_epoch == 3:
            self.optimizers().add_param_group({"params": list(self.network[:4].parameters()), "lr": 0.01})


def test_a_group_that_joins_decays_from_the_rate_that_it_was_given(tmp_path):
    rates = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    module = Unfreezes()
    make_trainer(tmp_path, finetuning(), Watch()).fit(module, SmallData())
    assert kind_of(module) == "packed"
    assert [len(each) for each in rates] == [1] * 12 + [2] * 6 + [3] * 6
    expected = 0.01 * (1 + torch.cos(torch.pi * torch.arange(6, 12) / 12)) / 2
    torch.testing.assert_close(torch.tensor([each[2] for each in rates[18:]]), expected)


class Backbone(SmallClassifier):
    def __init__(self):
        super().__init__()
        self.backbone = self.network[:4]

    def configure_optimizers(self):
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.05, momentum=0.9)


@pytest.mark.parametrize("ours_first", [True, False])
@pytest.mark.parametrize("quantize_at", [None, 0])
def test_lightnings_own_unfreezing_goes_on(tmp_path, ours_first, quantize_at):
    module, mixed = Backbone(), finetuning(quantize_at=quantize_at)
    others = [BackboneFinetuning(unfreeze_backbone_at_epoch=1 if quantize_at == 0 else 3)]
    callbacks = [mixed, *others] if ours_first else [*others, mixed]
    make_trainer(tmp_path, *callbacks).fit(module, SmallData())
    assert kind_of(module) == "packed"


def test_rates_that_are_tensors_stay_the_same_tensors(tmp_path):
    class Tensors(SmallClassifier):
        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=torch.tensor(0.01))

    held = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            if trainer.current_epoch >= 2:
                held.append([id(group["lr"]) for group in trainer.optimizers[0].param_groups])

    make_trainer(tmp_path, finetuning(), Watch()).fit(Tensors(), SmallData())
    assert len({tuple(each) for each in held}) == 1
    assert len(set(held[0])) == 2
