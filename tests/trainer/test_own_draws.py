"""Calibration draws by itself: the same batches at any time, and nothing of it is seen afterwards."""

import random

import lightning as L
import numpy as np
import pytest
import torch
from helpers.finetuning import Kill, Killed, fit
from helpers.state import same, state_of
from helpers.trainer import SmallClassifier, SmallData, make_callback, make_trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from lightning_mpq.curvature.accumulation import Accumulator
from lightning_mpq.options import SelectionOptions
from lightning_mpq.trainer.own_draws import own_draws

DATA = TensorDataset(torch.arange(64.0))


class Noisy(torch.utils.data.Dataset):
    """Draws from every generator there is."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return torch.rand(1) + random.random() + np.random.rand()


def shuffled():
    return DataLoader(DATA, 8, shuffle=True)


def by_a_generator_of_its_own():
    return DataLoader(DATA, 8, shuffle=True, generator=torch.Generator().manual_seed(3))


def by_epochs():
    return DataLoader(DATA, 8, sampler=DistributedSampler(DATA, num_replicas=2, rank=1))


def noisy():
    return DataLoader(Noisy(), 4)


@pytest.mark.parametrize("make", [shuffled, by_a_generator_of_its_own, by_epochs, noisy])
def test_the_same_is_drawn_at_any_time_and_nobody_else_notices(make):
    def drawn(loader, seed=0):
        with own_draws(loader, seed):
            return torch.cat([torch.as_tensor(batch[0]).flatten() for batch in loader])

    def state(loader):
        own = None if loader.generator is None else loader.generator.get_state()
        return [
            torch.get_rng_state(),
            own,
            random.getstate(),
            np.random.get_state(),
            getattr(loader.sampler, "epoch", 0),
        ]

    loader = make()
    first = drawn(loader)
    for moment in range(3):
        torch.rand(5), random.random(), np.random.rand()
        list(loader)
        if hasattr(loader.sampler, "set_epoch"):
            loader.sampler.set_epoch(moment)
        before = state(loader)
        assert torch.equal(drawn(loader), first)
        assert repr(state(loader)) == repr(before)
    assert torch.equal(drawn(make()), first)
    if make is not by_epochs:
        assert not torch.equal(drawn(loader, 1), first)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("epochs", [0, 1])
def test_the_checkpoint_of_the_last_float_step_gives_the_same_policy_from_the_cache(tmp_path, monkeypatch, epochs):
    def run(folder, *callbacks, **arguments):
        once = SelectionOptions(rounds=0)  # what is measured after the profile is not kept
        mixed = make_callback(finetune_epochs=epochs, cache_dir=tmp_path / "cache", compare=False, selection=once)
        steps = ModelCheckpoint(folder, every_n_train_steps=1, save_top_k=-1, filename="{step}")
        return mixed, fit(folder, *callbacks, mixed, steps, max_epochs=1, **arguments)[1]

    whole, module = run(tmp_path / "whole")
    with pytest.raises(Killed):
        run(tmp_path / "killed", Kill("on_train_epoch_end", 0))
    torch.rand(7), np.random.rand(3)

    def measures(*args):
        raise AssertionError("nothing is left to measure")

    monkeypatch.setattr(Accumulator, "add", measures)
    again, other = run(tmp_path / "resumed", resume=tmp_path / "killed" / "step=6.ckpt")
    assert again.policy == whole.policy
    assert again.taylor.fingerprint == whole.taylor.fingerprint
    assert same(other.state_dict(), module.state_dict())


@pytest.mark.filterwarnings("ignore")
def test_a_trained_model_is_calibrated_as_at_the_end_of_its_fit(tmp_path):
    class Keep(L.Callback):
        def on_train_end(self, trainer, pl_module):
            self.state = state_of(pl_module)

    keep, mixed, later = Keep(), make_callback(compare=False), make_callback(compare=False)
    make_trainer(tmp_path, keep, mixed, max_epochs=1).fit(SmallClassifier(), SmallData())
    module = SmallClassifier()
    module.load_state_dict(keep.state)
    later.quantize_trained(make_trainer(tmp_path), module, SmallData())
    assert later.taylor.fingerprint == mixed.taylor.fingerprint
