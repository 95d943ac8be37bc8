"""Loggers get pictures and pages where they take them."""

from pathlib import Path

import pytest
from helpers.reports import report_of
from helpers.taylor_models import make_taylor
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger

from lightning_mpq.trainer.attachments import attach

pytestmark = pytest.mark.filterwarnings("ignore")


def test_tensorboard_gets_a_figure(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    pytest.importorskip("matplotlib")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path)
    attach(logger, report_of(make_taylor(3)), 7)
    logger.finalize("success")
    found = EventAccumulator(logger.log_dir)
    found.Reload()
    ((image,),) = [found.Images(tag) for tag in found.Tags()["images"]]
    assert image.step == 7
    assert image.encoded_image_string.startswith(b"\x89PNG")


def test_mlflow_gets_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    logger = MLFlowLogger(tracking_uri=(tmp_path / "runs").as_uri())
    attach(logger, report_of(make_taylor(3)), 0)
    (page,) = (tmp_path / "runs").rglob("report.html")
    assert "<!doctype html>" in page.read_text()


def test_weights_and_biases_get_the_page(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    attach(logger, report_of(make_taylor(3)), 0)
    logger.experiment.finish()
    assert list((tmp_path / "wandb").rglob("*.wandb"))


class Offline:
    """Remembers what it is told, as a run of W&B or a client of MLflow does."""

    def __init__(self) -> None:
        self.told: list[tuple[tuple, str]] = []

    def log_artifact(self, *arguments: str, **named: str) -> None:
        path = next(each for each in arguments if each.endswith(".html"))
        self.told.append((arguments, Path(path).read_text()))


@pytest.mark.parametrize("name", ["MLFlowLogger", "WandbLogger"])
def test_the_page_is_whole_when_it_is_handed_over(name: str) -> None:
    run = Offline()
    logger = type(name, (), {"experiment": run, "run_id": "some-run"})()
    attach(logger, report_of(make_taylor(3)), 0)
    ((arguments, text),) = run.told
    assert text.rstrip().endswith("</html>")
    assert (arguments[0] == "some-run") == (name == "MLFlowLogger")


def test_loggers_that_take_numbers_alone_get_nothing_else(tmp_path: Path) -> None:
    attach(CSVLogger(tmp_path), report_of(make_taylor(3)), 0)
    assert not list(tmp_path.rglob("*.html"))


def test_subclasses_are_known_too() -> None:
    own = type("Own", (type("WandbLogger", (), {}),), {"experiment": (run := Offline())})()
    attach(own, report_of(make_taylor(3)), 0)
    assert len(run.told) == 1
