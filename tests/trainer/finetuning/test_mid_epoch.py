"""A fit that goes on from a checkpoint in the midst of an epoch ends as the uninterrupted one, in every phase."""

import lightning as L
import pytest
import torch
from helpers.finetuning import Recorder, finetuning, kind_of
from helpers.state import same
from helpers.trainer import SmallClassifier, SmallData, make_trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, Dataset, IterableDataset

from lightning_mpq import load
from lightning_mpq.options import FinetuneOptions

pytestmark = pytest.mark.filterwarnings("ignore")
BATCHES = 6


class NoisyImages(Dataset):
    """Augmentation by the generator of the process that loads."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data.labels)

    def __getitem__(self, index):
        image = self.data.images[index]
        return image + 0.1 * torch.randn(image.shape), self.data.labels[index]


class NoisyData(SmallData):
    def __init__(self, workers=0):
        super().__init__()
        self.workers = workers

    def train_dataloader(self):
        return DataLoader(NoisyImages(self), batch_size=16, shuffle=True, num_workers=self.workers)


class Stream(IterableDataset):
    """Images in an order of its own, without a length."""

    def __init__(self, data):
        self.data = data

    def __iter__(self):
        for index in torch.randperm(96).tolist():
            yield self.data.images[index], self.data.labels[index]


class StreamedData(SmallData):
    def train_dataloader(self):
        return DataLoader(Stream(self), batch_size=16)


def fit_with_steps_kept(folder, *callbacks, data=None, resume=None, seed=0, limit_val_batches=0, **arguments):
    keep = ModelCheckpoint(folder, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    arguments |= {"enable_checkpointing": True, "limit_val_batches": limit_val_batches}
    trainer = make_trainer(folder, *callbacks, keep, **arguments)
    L.seed_everything(seed, verbose=False)
    module = SmallClassifier()
    trainer.fit(module, data or SmallData(), ckpt_path=resume)
    return module


def settings(**options):
    return {"finetune": FinetuneOptions(**options), "finetune_epochs": 2}


@pytest.mark.parametrize(
    ("make_data", "steps", "arguments", "options"),
    [
        (SmallData, (2, 6, 9, 12, 15, 18, 23, 24), {}, {"distill": 1.0}),
        (NoisyData, (2, 8, 15, 20), {}, {}),
        (lambda: NoisyData(workers=1), (2, 15), {}, {}),
        (StreamedData, (2, 9, 15, 20), {}, {}),
        (SmallData, (2, 8, 10), {"accumulate_grad_batches": 2}, {"batchnorm": "frozen"}),
    ],
    ids=["shuffled", "augmented", "by a worker", "streamed", "accumulated"],
)
def test_a_fit_goes_on_after_any_step(tmp_path, make_data, steps, arguments, options):
    mixed = finetuning(**settings(**options))
    whole = fit_with_steps_kept(tmp_path / "whole", mixed, data=make_data(), **arguments).state_dict()
    for step in steps:
        recorder, again = Recorder(), finetuning(**settings(**options))
        path = tmp_path / "whole" / f"step={step}.ckpt"
        module = fit_with_steps_kept(
            tmp_path / str(step), again, recorder, data=make_data(), resume=path, seed=7, **arguments
        )
        assert same(module.state_dict(), whole), step
        assert again.policy == mixed.policy


def test_steps_that_end_the_float_phase_and_fine_tuning_in_the_midst_of_an_epoch(tmp_path):
    def mixed():
        return finetuning(finetune_epochs=0, finetune_steps=8)

    limits, recorder = {"max_steps": 8, "max_epochs": -1}, Recorder()
    whole = fit_with_steps_kept(tmp_path / "whole", mixed(), recorder, **limits).state_dict()
    assert recorder.epochs() == ["float", "float", "fake", "fake"]
    for step, rest in ((7, 3), (8, 2), (10, 2), (16, 0)):
        recorder = Recorder()
        path = tmp_path / "whole" / f"step={step}.ckpt"
        module = fit_with_steps_kept(tmp_path / str(step), mixed(), recorder, resume=path, seed=7, **limits)
        assert same(module.state_dict(), whole), step
        assert len(recorder.epochs()) == rest
    plain = fit_with_steps_kept(tmp_path / "plain", **limits).state_dict()
    recorder, path = Recorder(), tmp_path / "plain" / "step=8.ckpt"
    assert same(torch.load(path, weights_only=True)["state_dict"], plain)
    fit_with_steps_kept(tmp_path / "later", mixed(), recorder, resume=path, **limits)
    assert recorder.epochs() == ["fake", "fake"]


def test_checkpoints_after_validations_within_an_epoch(tmp_path):
    def fit(folder, resume=None, seed=0):
        keep = ModelCheckpoint(
            folder, every_n_epochs=1, save_on_train_epoch_end=False, save_top_k=-1, filename="{step}"
        )
        trainer = make_trainer(folder, finetuning(), keep, enable_checkpointing=True, val_check_interval=0.5)
        L.seed_everything(seed, verbose=False)
        module = SmallClassifier()
        trainer.fit(module, SmallData(), ckpt_path=resume)
        return module.state_dict()

    whole = fit(tmp_path / "whole")
    paths = sorted((tmp_path / "whole").glob("*.ckpt"))
    assert len(paths) == 8
    for path in paths:
        assert same(fit(tmp_path / path.stem, path, seed=7), whole), path.stem


def test_a_checkpoint_between_last_batch_and_validation_says_what_is_left_out(tmp_path):
    steps = {"limit_val_batches": 1.0}
    fit_with_steps_kept(tmp_path, finetuning(), **steps)
    for step, kinds in ((2 * BATCHES, ["fake", "fake"]), (3 * BATCHES, ["fake"])):
        recorder, path = Recorder(), tmp_path / f"step={step}.ckpt"
        with pytest.warns(UserWarning, match="before its validation, which is left out"):
            module = fit_with_steps_kept(tmp_path / "again", finetuning(), recorder, resume=path, **steps)
        assert recorder.epochs() == kinds
        assert kind_of(module) == "packed"


def test_a_checkpoint_between_two_steps_says_that_gradients_are_lost(tmp_path):
    class Save(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.current_epoch == 2 and batch_idx == 2:
                trainer.save_checkpoint(tmp_path / "between.ckpt")

    fit_with_steps_kept(tmp_path, finetuning(), Save(), accumulate_grad_batches=2)
    with pytest.warns(UserWarning, match="gradients accumulated over 1 batches are not in it"):
        fit_with_steps_kept(tmp_path, finetuning(), resume=tmp_path / "between.ckpt", accumulate_grad_batches=2)


def test_a_checkpoint_of_any_step_of_fine_tuning_converts_to_what_it_computes(tmp_path):
    outputs, images = {}, SmallData().images

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            with torch.no_grad():
                outputs[trainer.global_step] = pl_module.eval()(images)
            pl_module.train()

    fit_with_steps_kept(tmp_path, Watch(), finetuning())
    for step in (2 * BATCHES + 1, 3 * BATCHES, 4 * BATCHES - 1):
        module = load(tmp_path / f"step={step}.ckpt", SmallClassifier())
        assert kind_of(module) == "packed"
        with torch.no_grad():
            assert torch.equal(module.eval()(images), outputs[step])
