"""What cannot be fine-tuned is said in a sentence, and nothing is lost."""

import lightning as L
import pytest
import torch
from helpers.finetuning import Kill, Killed, finetuning, fit, kind_of
from helpers.trainer import SmallClassifier, SmallData, make_trainer, trained
from lightning.pytorch.callbacks import ModelCheckpoint, ModelPruning
from lightning.pytorch.strategies import FSDPStrategy

from lightning_mpq.errors import NonFiniteError
from lightning_mpq.options import CandidateOptions, FinetuneOptions

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"finetune_epochs": -1}, "epochs of fine-tuning must be an integer of at least 0, got -1"),
        ({"finetune_epochs": 1.5}, "epochs of fine-tuning must be an integer"),
        ({"finetune_epochs": None, "finetune_steps": 0}, "steps of fine-tuning must be an integer of at least 1"),
        ({"finetune_epochs": 1, "finetune_steps": 2}, "epochs or steps of fine-tuning, not both"),
        ({"quantize_at": -1}, "quantize_at must be the number of an epoch"),
        ({"quantize_at": True}, "quantize_at must be the number of an epoch"),
    ],
)
def test_arguments(arguments, said):
    with pytest.raises(ValueError, match=said):
        finetuning(**arguments)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"temperature": -1.0}, "temperature must be positive"),
        ({"distill": -1.0}, "distill must be 0 or more"),
        ({"schedule": "linear"}, "schedule must be one of 'cosine', 'constant'"),
        ({"batchnorm": "no"}, "batchnorm must be one of 'average', 'frozen'"),
    ],
)
def test_options(options, said):
    with pytest.raises(ValueError, match=said):
        FinetuneOptions(**options)


def test_no_training_batches(tmp_path):
    with pytest.raises(ValueError, match="needs training batches.*limit_train_batches=0"):
        trained(tmp_path, finetuning(), limit_train_batches=0)


def test_few_steps_are_said(tmp_path):
    with pytest.warns(UserWarning, match="has 2 optimizer steps only"):
        trained(tmp_path, finetuning(finetune_epochs=1), limit_train_batches=2)


@pytest.mark.parametrize(("alone", "epochs", "said"), [(True, 1, True), (False, 1, False), (True, 0, False)])
def test_checkpoints_of_weights_without_scales_are_said(tmp_path, recwarn, alone, epochs, said):
    keeping = ModelCheckpoint(tmp_path, save_weights_only=alone)
    trained(tmp_path, finetuning(finetune_epochs=epochs), keeping, fast_dev_run=True, enable_checkpointing=True)
    assert said == any("save_weights_only=True" in str(each.message) for each in recwarn)


def test_frozen_parameters_stay_frozen_and_are_named(tmp_path, caplog):
    class Frozen(SmallClassifier):
        def __init__(self):
            super().__init__()
            self.network[0].requires_grad_(False)

    seen = {}

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            if trainer.current_epoch >= 2:
                weight = pl_module.network[0].weight.detach().clone()
                assert torch.equal(seen.setdefault("weight", weight), weight)
                seen["requires_grad"] = pl_module.network[0]._parameters["weight"].requires_grad

    L.seed_everything(0, verbose=False)
    with caplog.at_level("INFO", logger="lightning.pytorch"):
        module = Frozen()
        make_trainer(tmp_path, finetuning(), Watch()).fit(module, SmallData())
    assert "1 quantized layers are frozen or in no optimizer and stay as they are: network.0" in caplog.text
    assert seen["requires_grad"] is False
    assert kind_of(module) == "packed"


def test_optimizers_that_hold_copies_or_nothing_of_the_layers(tmp_path):
    class ByHand(SmallClassifier):
        def configure_optimizers(self):
            return torch.optim.SGD([parameter.detach().clone() for parameter in self.parameters()], lr=0.1)

    module = ByHand()
    with (
        pytest.warns(UserWarning, match="no parameters of the module .copies kept by hand"),
        pytest.raises(ValueError, match="No optimizer holds a quantized weight that learns"),
    ):
        make_trainer(tmp_path, finetuning()).fit(module, SmallData())
    assert kind_of(module) == "float"


def test_an_optimizer_made_elsewhere_is_emptied_and_said(tmp_path):
    class Kept(SmallClassifier):
        def __init__(self):
            super().__init__()
            self.own = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)

        def configure_optimizers(self):
            return self.own

    L.seed_everything(0, verbose=False)
    module = Kept()
    with pytest.warns(UserWarning, match="returned the same SGD as before"):
        make_trainer(tmp_path, finetuning()).fit(module, SmallData())
    assert kind_of(module) == "packed"


def test_a_module_that_replaces_its_layers(tmp_path):
    class Restless(SmallClassifier):
        def on_train_epoch_end(self):
            if self.current_epoch == 2:
                self.network[8] = torch.nn.Linear(32, 3)

    module = Restless()
    with pytest.raises(ValueError, match="'network.8' was replaced during fine-tuning"):
        fit(tmp_path, finetuning(), module=module)
    assert kind_of(module) == "float"
    assert (tmp_path / "last.ckpt").exists()


def test_fine_tuning_that_diverges_is_told_before_a_checkpoint_keeps_it(tmp_path):
    """Fake-quantized weights are bounded, and BatchNorm divides by what grows; a float layer without it has neither."""

    class Plain(SmallClassifier):
        def __init__(self):
            super().__init__()
            self.network = torch.nn.Sequential(
                torch.nn.Flatten(), torch.nn.Linear(36, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)
            )

        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * self.network[1].weight.square().mean().exp()

    L.seed_everything(0, verbose=False)
    module, candidates = Plain(), CandidateOptions(keep_float=["network.1"])
    mixed = finetuning(finetune=FinetuneOptions(learning_rate=1e3), candidates=candidates)
    with pytest.raises(NonFiniteError, match=r"diverged. Layer 'network.3'.*learning_rate=1000.*gradient_clip_val"):
        fit(tmp_path, mixed, module=module)
    assert kind_of(module) == "float"
    assert {path.stem for path in tmp_path.glob("epoch=*.ckpt")} == {"epoch=0", "epoch=1"}


def test_a_failure_while_fine_tuning_leaves_a_float_module_and_the_trainers_limits(tmp_path):
    module = SmallClassifier()
    with pytest.raises(Killed):
        fit(tmp_path, Kill("on_train_batch_start", 3), finetuning(finetune=FinetuneOptions(distill=1.0)), module=module)
    assert kind_of(module) == "float"
    assert not {"training_step", "configure_optimizers", "on_load_checkpoint"} & set(module.__dict__)
    make_trainer(tmp_path).validate(module, SmallData(), verbose=False)


def test_a_checkpoint_of_another_plan(tmp_path):
    fit(tmp_path, finetuning(4.5))
    checkpoint = tmp_path / "epoch=2.ckpt"
    module = SmallClassifier()
    with pytest.raises(ValueError, match="fine-tuned under the budget .*4.5.*and the callback has .*3.5"):
        fit(tmp_path, finetuning(3.5), module=module, resume=checkpoint)
    assert kind_of(module) == "float"
    other = finetuning(8.0, finetune_epochs=0)
    trained(tmp_path, other)
    with pytest.raises(ValueError, match="under another policy than policy="):
        fit(tmp_path, finetuning(4.5, policy=other.policy), resume=checkpoint)


def test_a_teacher_that_the_checkpoint_does_not_hold(tmp_path):
    fit(tmp_path, finetuning())
    module, mixed = SmallClassifier(), finetuning(finetune=FinetuneOptions(distill=1.0))
    with pytest.raises(ValueError, match="without distillation and holds no float model that could teach"):
        fit(tmp_path, mixed, module=module, resume=tmp_path / "epoch=2.ckpt")
    assert kind_of(module) == "float"


@pytest.mark.parametrize(
    ("option", "before", "now"),
    [("learn_scales", True, False), ("learn_scales", False, True), ("learn_ranges", True, False)],
)
def test_scales_that_learned_and_shall_not_or_the_other_way_round(tmp_path, option, before, now):
    fit(tmp_path, finetuning(finetune=FinetuneOptions(**{option: before})))
    module, mixed = SmallClassifier(), finetuning(finetune=FinetuneOptions(**{option: now}))
    with pytest.raises(ValueError, match=f"fine-tuned with {option}={before}.*go on with the same"):
        fit(tmp_path, mixed, module=module, resume=tmp_path / "epoch=2.ckpt")
    assert kind_of(module) == "float"


def test_a_submodule_to_distill_that_is_not_there_is_refused_before_the_first_step(tmp_path):
    trainer = make_trainer(tmp_path, finetuning(finetune=FinetuneOptions(distill=1.0, distill_from="encoder")))
    with pytest.raises(ValueError, match="distill_from='encoder' names no submodule of SmallClassifier"):
        trainer.fit(SmallClassifier(), SmallData())
    assert trainer.global_step == 0


@pytest.mark.parametrize(("epochs", "first"), [(1, True), (0, False)])
def test_pruning_that_is_not_over_when_weights_are_quantized(tmp_path, epochs, first):
    callbacks = [ModelPruning("l1_unstructured", amount=0.3), finetuning(finetune_epochs=epochs)]
    trainer = make_trainer(tmp_path, *(callbacks if first else callbacks[::-1]))
    with pytest.raises(ValueError, match="ModelPruning makes its zeros permanent at the end.*List it before"):
        trainer.fit(SmallClassifier(), SmallData())
    assert trainer.global_step == 0


def test_strategies_that_cut_parameters_are_refused_in_setup(tmp_path):
    mixed, trainer = finetuning(), make_trainer(tmp_path)
    trainer.strategy.__class__ = FSDPStrategy
    with pytest.raises(ValueError, match="FSDPStrategy.*strategy='ddp'"):
        mixed.setup(trainer, SmallClassifier(), "fit")
