"""Stand-ins for loggers and callbacks: of the same class, with the same attributes, and nothing comes of them."""

from helpers.trainer import make_trainer
from lightning.pytorch.callbacks import LambdaCallback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from lightning_mpq.trainer.silent import silent_callback, silent_logger


def test_a_silent_logger_has_its_folders_and_writes_nothing(tmp_path):
    logger = CSVLogger(tmp_path, name="mine", version=3)
    silent = silent_logger(logger)
    assert isinstance(silent, CSVLogger)
    assert (silent.name, silent.version, silent.log_dir) == ("mine", 3, logger.log_dir)
    silent.log_metrics({"loss": 1.0}, step=0)
    silent.log_hyperparams({"rate": 0.1})
    silent.experiment.add_image("confusion", object()).whatever["else"] = 1
    with silent.experiment.context():
        silent.save()
    silent.finalize("success")
    assert not list(tmp_path.rglob("*"))


def test_hooks_of_a_silent_callback_do_nothing_on_the_class_and_on_the_instance(tmp_path):
    called = []
    callback = LambdaCallback(on_validation_start=lambda *args: called.append("here"))
    silent = silent_callback(callback)
    silent.on_validation_start(None, None)
    assert not called
    callback.on_validation_start(None, None)
    assert called == ["here"]


def test_what_is_set_on_a_silent_callback_is_not_set_on_the_other(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, monitor="loss")
    silent = silent_callback(checkpoint)
    silent.best_model_score = 1.0
    assert checkpoint.best_model_score is None
    trainer = make_trainer(tmp_path)
    trainer.callbacks = [silent]
    assert trainer.checkpoint_callback is silent
    assert silent.state_key == checkpoint.state_key
