"""What is refused of a configuration before anything is made of it."""

import re
from pathlib import Path

import lightning as L
import pytest
from helpers.command import own

from lightning_mpq.cli.preconditions import require_kinds, require_values
from lightning_mpq.cli.run import run


@pytest.fixture(autouse=True)
def nothing_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(L.Trainer, "fit", lambda *args, **kwargs: pytest.fail("trained"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.max_epochs=ten", "trainer.max_epochs must be an integer or null, got 'ten'."),
        ("trainer.max_epochs=1.5", "trainer.max_epochs must be an integer or null, got 1.5."),
        ("trainer.max_epochs=true", "trainer.max_epochs must be an integer or null, got True."),
        ("+trainer.accumulate_grad_batches=2.0", "trainer.accumulate_grad_batches must be an integer, got 2.0."),
        ("+trainer.limit_train_batches=half", "trainer.limit_train_batches must be an integer, a number or null, got"),
        ("trainer.enable_checkpointing=no", "trainer.enable_checkpointing must be true or false or null, got 'no'."),
        ("+trainer.detect_anomaly=off", "trainer.detect_anomaly must be true or false, got 'off'."),
        ("+trainer.deterministic=yes", "trainer.deterministic must be true or false, 'warn' or null, got 'yes'."),
        ("+trainer.fast_dev_run=no", "trainer.fast_dev_run must be true or false or an integer, got 'no'."),
        ("trainer.logger=off", "trainer.logger must be true or false or null, got 'off'."),
        ("trainer.precision=7", "trainer.precision must be 64, 32, 16, "),
        ("seed=-1", "seed must be from 0 to 4294967295, got -1."),
        ("seed=4294967296", "seed must be from 0 to 4294967295, got 4294967296."),
    ],
)
def test_a_value_of_another_kind_is_refused_by_its_name(override: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        run(own(tmp_path, override))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "override",
    [
        "+trainer.limit_train_batches=1",
        "+trainer.limit_train_batches=0.5",
        "+trainer.gradient_clip_val=1",
        "+trainer.deterministic=warn",
        "+trainer.fast_dev_run=2",
        "trainer.precision=bf16-mixed",
        "trainer.devices=auto",
        "trainer.logger=false",
        "+trainer.max_time='00:00:01:00'",
        "+trainer.val_check_interval=0.5",
        "trainer.max_epochs=null",
        "trainer._target_=builtins.dict",
    ],
)
def test_what_lightning_takes_is_left_to_it(override: str, tmp_path: Path) -> None:
    config = own(tmp_path, override)
    require_values(config)
    require_kinds(config.trainer)


@pytest.mark.parametrize(
    ("part", "override", "kind"),
    [
        ("data", "data._target_=helpers.trainer.SmallClassifier", "LightningDataModule"),
        ("model", "model._target_=helpers.trainer.SmallData", "LightningModule"),
        ("trainer", "trainer._target_=builtins.dict", "Trainer"),
        ("callbacks.mine", "+callbacks.mine={_target_: helpers.trainer.SmallClassifier}", "Callback"),
    ],
)
def test_what_makes_another_thing_is_refused_by_its_name(part: str, override: str, kind: str, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=rf"^{part} must make a {kind}, got "):
        run(own(tmp_path, override))


def test_folders_may_be_called_by_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = own(tmp_path, "cache_dir=3", "data._target_=helpers.trainer.SmallClassifier")
    config.output_dir = 4
    with pytest.raises(TypeError, match="data must make"):
        run(config)
    assert (tmp_path / "4" / "model").is_dir()
