"""The comparison validates as the user does, and its failure costs metrics only."""

import warnings

import lightning as L
import pytest
import torch
from helpers.trainer import SmallClassifier, SmallData, make_callback, make_trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from lightning_mpq.modules import packed_layers
from lightning_mpq.pipeline.comparison import Comparison

pytestmark = pytest.mark.filterwarnings("ignore")


class NoValidationData(L.LightningDataModule):
    def train_dataloader(self):
        return SmallData().train_dataloader()


class AsksAround(SmallClassifier):
    """Validation that uses whatever a Trainer offers."""

    def on_validation_epoch_end(self):
        if self.trainer.sanity_checking:
            return
        assert isinstance(self.logger, CSVLogger)
        self.logger.log_metrics({"shown": 1.0}, step=self.global_step)
        self.logger.experiment.log_hparams({"classes": 3})
        assert str(self.logger.log_dir).startswith(str(self.trainer.default_root_dir))
        assert self.trainer.log_dir == self.logger.log_dir
        assert self.trainer.checkpoint_callback.monitor == "val_loss"
        assert self.trainer.early_stopping_callback.wait_count == 0
        assert self.trainer.progress_bar_callback.is_enabled


class Fails(SmallClassifier):
    """Validation that works once after each epoch, and fails when it is asked more often."""

    validated = 0

    def on_train_epoch_start(self):
        self.validated = 0

    def on_validation_epoch_end(self):
        self.validated += not self.trainer.sanity_checking
        if self.validated > 1:
            raise RuntimeError("nothing left to draw")


def the_way(name, module, folder, mixed, data):
    """Quantize at the end of a fit, before fine-tuning, or afterwards."""
    if name == "quantize_trained":
        return mixed.quantize_trained(make_trainer(folder), module, data)
    return make_trainer(folder, mixed, max_epochs=1).fit(module, data)


WAYS = [("fit", {}), ("fine-tuning", {"finetune_epochs": 1}), ("quantize_trained", {})]


@pytest.mark.parametrize(("way", "options"), WAYS)
def test_without_validation_data_the_report_has_no_metrics(tmp_path, way, options):
    mixed, module = make_callback(**options), SmallClassifier()
    the_way(way, module, tmp_path, mixed, NoValidationData())
    assert packed_layers(module)
    assert mixed.report["chosen"].metrics == {}


@pytest.mark.parametrize("epochs", [0, 1])
def test_validation_sees_its_loggers_and_callbacks_as_ever(tmp_path, epochs):
    mixed, module = make_callback(finetune_epochs=epochs), AsksAround()
    logger = CSVLogger(tmp_path / "logs")
    others = [ModelCheckpoint(tmp_path / "best", monitor="val_loss"), EarlyStopping("val_loss", patience=9)]
    settings = {"logger": logger, "enable_checkpointing": True, "enable_progress_bar": True, "max_epochs": 1}
    make_trainer(tmp_path, mixed, *others, **settings).fit(module, SmallData())
    assert packed_layers(module)
    assert mixed.report["chosen"].metrics.keys() == {"val_accuracy", "val_loss"}
    shown = [row for row in logger.experiment.metrics if "shown" in row]
    assert len(shown) <= 1 + epochs  # of the fit's own validation, not of the comparison


def test_other_loggers_stay_of_their_kind(tmp_path):
    pytest.importorskip("tensorboard")

    class Draws(SmallClassifier):
        def on_validation_epoch_end(self):
            assert isinstance(self.logger, TensorBoardLogger)
            self.logger.experiment.add_image("weights", torch.zeros(1, 2, 2), self.global_step)

    mixed = make_callback()
    make_trainer(tmp_path, mixed, logger=TensorBoardLogger(tmp_path), max_epochs=1).fit(Draws(), SmallData())
    assert mixed.report["chosen"].metrics


@pytest.mark.parametrize(("way", "options"), WAYS)
def test_validation_that_fails_costs_the_metrics_only(tmp_path, way, options):
    class FailsAtOnce(Fails):
        def validation_step(self, batch, batch_idx):
            if way == "quantize_trained":
                raise ValueError("nothing left to draw")
            super().validation_step(batch, batch_idx)

    mixed, module = make_callback(**options), FailsAtOnce()
    with pytest.warns(UserWarning, match="report has no metrics .*nothing left to draw") as caught:
        the_way(way, module, tmp_path, mixed, SmallData())
    assert packed_layers(module)
    assert mixed.policy is not None
    assert mixed.report["chosen"].metrics == {}
    assert mixed.report["chosen"].measured_loss > 0
    said = [warning for warning in caught if "has no metrics" in str(warning.message)]
    assert len(said) <= 2  # for the comparison, and for what was fine-tuned after it


def test_training_goes_on_in_its_mode_after_validation_that_failed(tmp_path):
    seen = []

    class Notes(Fails):
        def training_step(self, batch, batch_idx):
            seen.append((self.current_epoch, self.training, self.accuracy._update_count))
            return super().training_step(batch, batch_idx)

    make_trainer(tmp_path, make_callback(finetune_epochs=1), max_epochs=1).fit(Notes(), SmallData())
    assert (1, True, 0) in seen
    assert [mode for epoch, mode, _ in seen if epoch == 1].count(True) == 6  # and in evaluation mode to measure it


def test_a_comparison_that_fails_keeps_the_packed_model(tmp_path, monkeypatch):
    def fails(*args):
        raise FloatingPointError("the uniform policy overflows")

    monkeypatch.setattr(Comparison, "policy_row", fails)
    mixed, module = make_callback(), SmallClassifier()
    with pytest.warns(UserWarning, match="comparison failed.*the uniform policy overflows"):
        make_trainer(tmp_path, mixed, max_epochs=1).fit(module, SmallData())
    assert packed_layers(module)
    assert (mixed.policy, mixed.report) == (mixed.allocation.policy, None)


def test_nothing_is_said_where_all_is_well(tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make_trainer(tmp_path, make_callback(), max_epochs=1).fit(SmallClassifier(), SmallData())
    assert not [warning for warning in caught if "comparison" in str(warning.message) or "metrics" in str(warning)]
