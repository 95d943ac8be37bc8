"""A fit that was killed at any point, and resumed from its last checkpoint, ends as the uninterrupted one."""

import lightning as L
import pytest
import torch
from helpers.finetuning import Kill, Killed, Recorder, finetuning, fit, kind_of
from helpers.state import same
from helpers.trainer import SmallClassifier, SmallData, make_trainer
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, OnExceptionCheckpoint

from lightning_mpq import PackedCheckpoints, load
from lightning_mpq.curvature.accumulation import Accumulator
from lightning_mpq.options import FinetuneOptions

pytestmark = pytest.mark.filterwarnings("ignore")


class KillPlan(L.Callback):
    """Kills while the loss is profiled, after the first batch."""

    def on_fit_start(self, trainer, pl_module):
        self.add = Accumulator.add

        def add(accumulator, *args):
            if accumulator.samples:
                raise Killed
            self.add(accumulator, *args)

        Accumulator.add = add

    def on_exception(self, trainer, pl_module, exception):
        Accumulator.add = self.add


class Mixed(PackedCheckpoints, SmallClassifier):
    """Loads packed layers by itself."""


POINTS = {
    "in the float phase": (Kill("on_train_epoch_start", 1), ["float", "fake", "fake"]),
    "during profiling": (KillPlan(), ["fake", "fake"]),
    "behind the plan": (Kill("on_train_batch_start", 2), ["fake", "fake"]),
    "during fine-tuning": (Kill("on_train_epoch_start", 3), ["fake"]),
    "before packing": (Kill("on_train_end"), []),
}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    mixed = finetuning(compare=True)
    _, module = fit(folder, mixed)
    return module.state_dict(), mixed


@pytest.mark.parametrize("point", POINTS)
def test_a_killed_fit_ends_as_the_uninterrupted_one(tmp_path, uninterrupted, point):
    kill, rest = POINTS[point]
    state, whole = uninterrupted
    cache = {"cache_dir": tmp_path / "cache", "compare": True}
    with pytest.raises(Killed):
        fit(tmp_path, kill, finetuning(**cache))
    torch.rand(7)
    recorder, mixed = Recorder(), finetuning(**cache)
    L.seed_everything(5, verbose=False)
    _, module = fit(tmp_path, mixed, recorder, resume=tmp_path / "last.ckpt")
    assert recorder.epochs() == rest
    assert same(module.state_dict(), state)
    assert mixed.policy == whole.policy
    assert [(row.name, row.metrics) for row in mixed.report.models] == [
        (row.name, row.metrics) for row in whole.report.models
    ]


def test_every_checkpoint_resumes_opens_without_code_and_converts(tmp_path, uninterrupted):
    state, _ = uninterrupted
    fit(tmp_path, finetuning(compare=True))
    keys = set(SmallClassifier().state_dict())
    for epoch in range(4):
        path = tmp_path / f"epoch={epoch}.ckpt"
        checkpoint = torch.load(path, weights_only=True)
        assert set(checkpoint["state_dict"]) == keys
        _, module = fit(tmp_path / f"from{epoch}", finetuning(compare=True), resume=path)
        assert same(module.state_dict(), state)
    for given in (SmallClassifier(), SmallClassifier, Mixed):
        module = load(tmp_path / "epoch=3.ckpt", given)
        assert same(module.state_dict(), state)
        assert type(module) in (SmallClassifier, Mixed)
        assert set(vars(module)) == set(vars(SmallClassifier()))
    module = SmallClassifier()
    metrics = make_trainer(tmp_path, finetuning()).test(module, SmallData(), path, verbose=False)[0]
    assert kind_of(module) == "packed"
    assert metrics == pytest.approx(make_trainer(tmp_path).test(module, SmallData(), verbose=False)[0])
    fit(tmp_path / "plain", resume=tmp_path / "epoch=1.ckpt", max_epochs=3)  # without the callback


@pytest.mark.parametrize(
    "options",
    [
        {"distill": 1.0, "teacher_dtype": "bfloat16"},
        {"batchnorm": "frozen"},
    ],
)
def test_what_options_add_is_resumed_as_well(tmp_path, options):
    settings = {"finetune": FinetuneOptions(**options), "finetune_epochs": 2}
    _, whole = fit(tmp_path / "whole", finetuning(**settings))
    with pytest.raises(Killed):
        fit(tmp_path, Kill("on_train_epoch_start", 3), finetuning(**settings))
    _, module = fit(tmp_path, finetuning(**settings), resume=tmp_path / "last.ckpt")
    assert same(module.state_dict(), whole.state_dict())


def test_an_early_end_of_the_float_phase_is_remembered(tmp_path):
    def stopping():
        return EarlyStopping("val_loss", patience=1, min_delta=100.0)

    _, whole = fit(tmp_path / "whole", stopping(), finetuning(), max_epochs=9)
    with pytest.raises(Killed):
        fit(tmp_path, stopping(), KillPlan(), finetuning(), max_epochs=9)
    recorder = Recorder()
    _, module = fit(tmp_path, stopping(), recorder, finetuning(), resume=tmp_path / "last.ckpt", max_epochs=9)
    assert recorder.epochs() == ["fake", "fake"]
    assert same(module.state_dict(), whole.state_dict())


def test_averages_of_the_float_phase_are_resumed(tmp_path):
    def average():
        return EMAWeightAveraging(decay=0.5)

    _, whole = fit(tmp_path / "whole", average(), finetuning())
    for hook, epoch in (("on_train_epoch_start", 1), ("on_train_batch_start", 2), ("on_train_epoch_start", 3)):
        folder = tmp_path / f"{hook}{epoch}"
        with pytest.raises(Killed):
            fit(folder, average(), Kill(hook, epoch), finetuning())
        _, module = fit(folder, average(), finetuning(), resume=folder / "last.ckpt")
        assert same(module.state_dict(), whole.state_dict())


def test_a_checkpoint_written_on_an_exception_holds_the_scales(tmp_path):
    options = {"finetune": FinetuneOptions(distill=0.5)}
    with pytest.raises(Killed):
        fit(tmp_path, finetuning(**options), Kill("on_train_batch_start", 3), OnExceptionCheckpoint(tmp_path, "stop"))
    module = SmallClassifier()
    assert kind_of(load(tmp_path / "stop.ckpt", module)) == "packed"
    _, module = fit(tmp_path, finetuning(**options), resume=tmp_path / "stop.ckpt")
    assert kind_of(module) == "packed"
