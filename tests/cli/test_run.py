import shutil
from collections.abc import Callable
from pathlib import Path

import lightning as L
import pytest
import torch
from helpers.command import FAST, LITTLE, TINY, Folders, composed
from hydra.utils import instantiate
from safetensors.torch import load, save

import lightning_mpq.cli.run as cli
from lightning_mpq import load as load_packed
from lightning_mpq.cli.cache_entry import cache_entry
from lightning_mpq.pipeline.pipeline import Pipeline

pytest.importorskip("sklearn", reason="the default experiment is scikit-learn's digits")


@pytest.fixture(scope="module")
def trained_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cache with the weights that TINY and FAST lead to."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        folders = Folders(tmp_path_factory.mktemp("trained"), monkeypatch)
        assert folders.run("first", *FAST) is None  # there is no verdict to take a metric from
        assert folders.fits == 1
    return folders.cache


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folders:
    return Folders(tmp_path, monkeypatch)


def test_a_run_trains_quantizes_saves_and_tests(folders: Folders) -> None:
    metric = folders.run("first")
    chosen = folders.report("first")["models"][-1]
    assert chosen["name"] == "chosen"
    assert metric == chosen["metrics"]["val_accuracy"]
    assert chosen["average_bits"] <= 6
    config = composed(*TINY)
    config.output_dir = str(folders.folder)
    module, datamodule = instantiate(config.model), instantiate(config.data)
    load_packed(folders.folder / "first" / "model", module)
    datamodule.setup("test")
    with torch.no_grad():
        hits = [(module.eval()(images).argmax(1) == labels) for images, labels in datamodule.test_dataloader()]
    accuracy = torch.cat(hits).float().mean()
    assert folders.test_results("first")["quantized"]["test_accuracy"] == pytest.approx(float(accuracy), abs=1e-6)
    assert folders.test_results("first")["float"].keys() == {"test_accuracy", "test_loss"}
    assert (folders.folder / "first" / "training" / "metrics.csv").is_file()


def test_trained_weights_are_found_again_and_lead_to_the_same_model(folders: Folders) -> None:
    folders.run("first")
    (entry,) = (folders.cache / "trained").iterdir()
    written = entry.stat().st_mtime_ns
    folders.run("second")
    assert folders.fits == 1
    assert entry.stat().st_mtime_ns == written
    assert folders.report("first") == folders.report("second")
    assert folders.test_results("first") == folders.test_results("second")
    first, second = (next((folders.folder / name / "model").glob("*.safetensors")) for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(
    ("override", "trains_again"),
    [
        ("budget.average_bits=5", False),
        ("callbacks.mpq.calibration_batches=2", False),
        ("trainer.log_every_n_steps=3", False),
        ("seed=1", True),
        ("model.learning_rate=0.05", True),
        ("+trainer.limit_train_batches=3", True),
        ("+callbacks.timer._target_=lightning.pytorch.callbacks.Timer", True),
    ],
)
def test_only_what_decides_the_weights_trains_again(
    folders: Folders, trained_cache: Path, override: str, trains_again: bool
) -> None:
    shutil.copytree(trained_cache, folders.cache)
    folders.run("second", override, *FAST)
    assert folders.fits == trains_again
    assert len(list((folders.cache / "trained").iterdir())) == 1 + trains_again


def test_where_a_run_writes_does_not_count() -> None:
    checkpoint = "{_target_: lightning.pytorch.callbacks.OnExceptionCheckpoint, dirpath: '${output_dir}'}"
    keys = set()
    for folder in ("first", "second"):
        config = composed(*TINY, f"+callbacks.checkpoint={checkpoint}")
        config.output_dir = folder
        L.seed_everything(0)
        entry = cache_entry(config, instantiate(config.model), instantiate(config.data))
        assert entry is not None
        keys.add(entry.key)
    assert len(keys) == 1


def damage(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def truncate(content: bytes) -> bytes:
    return content[:-9]


def replace(content: bytes) -> bytes:
    return save({name: torch.zeros_like(value) for name, value in load(content).items()})


@pytest.mark.parametrize("spoil", [damage, truncate, replace])
def test_a_spoiled_entry_is_not_used_but_written_anew(
    folders: Folders, trained_cache: Path, spoil: Callable[[bytes], bytes]
) -> None:
    shutil.copytree(trained_cache, folders.cache)
    (entry,) = (folders.cache / "trained").iterdir()
    good = entry.read_bytes()
    entry.write_bytes(spoil(good))
    folders.run("second", *FAST)
    assert folders.fits == 1
    assert entry.read_bytes() == good


def test_weights_are_kept_even_if_quantization_fails(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: object) -> None:
        raise ValueError("no plan")

    with monkeypatch.context() as patch:
        patch.setattr(Pipeline, "run", fails)
        with pytest.raises(ValueError, match="no plan"):
            folders.run("first")
    folders.run("second")
    assert folders.fits == 1


def test_finetuning_starts_from_one_float_training_and_one_profile(folders: Folders) -> None:
    finetunes = [*LITTLE, "finetune=qat", "finetune.epochs=1", "+trainer.limit_train_batches=2"]
    plain = folders.run("plain", *LITTLE, "+trainer.limit_train_batches=2")
    metric = folders.run("first", *finetunes)
    assert folders.fits == 2  # the training, and one of fine-tuning
    assert folders.report("first")["models"][:-1] == folders.report("plain")["models"]
    last = folders.report("first")["models"][-1]
    assert (last["name"], last["metrics"]["val_accuracy"]) == ("fine-tuned", metric)
    assert plain == folders.report("plain")["models"][-1]["metrics"]["val_accuracy"]
    assert folders.run("other", *finetunes, "budget.average_bits=5") is not None
    assert folders.fits == 3
    # One for statistics that are measured again and, where that does harm, one for those that stay.
    assert len(list(folders.cache.glob("*taylor*"))) <= 2
    shutil.rmtree(folders.cache)
    folders.run("again", *finetunes)  # trains first, and comes to the same model
    assert folders.fits == 5
    first, again = (next((folders.folder / name / "model").glob("*.safetensors")) for name in ("first", "again"))
    assert first.read_bytes() == again.read_bytes()
    assert (folders.folder / "again" / "finetuning" / "metrics.csv").is_file()


def test_a_cache_and_a_file_of_results_that_cannot_be_written_cost_no_model(
    folders: Folders, caplog: pytest.LogCaptureFixture
) -> None:
    folders.cache.write_text("a file in its place")
    (folders.folder / "first" / "test.json").mkdir(parents=True)
    with pytest.warns(UserWarning, match=r"test results .*test.json cannot be used.*in the log"):
        assert folders.run("first", "+trainer.limit_train_batches=2") is not None
    assert (folders.folder / "first" / "model" / "lightning_mpq.json").is_file()
    assert "The trained weights cannot be kept in" in caplog.text


def test_an_output_folder_that_cannot_be_written_is_refused_before_the_training(folders: Folders) -> None:
    (folders.folder / "first").write_text("a file in its place")
    with pytest.raises(OSError, match=r"Nothing can be written to .*first/model .*output_dir="):
        folders.run("first", *FAST)
    assert folders.fits == 0


def test_a_model_that_the_folder_has_no_room_for_is_saved_elsewhere(
    folders: Folders, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write, place = cli.save, folders.folder / "first"

    def full(module: L.LightningModule, folder: Path) -> Path:
        if folder.is_relative_to(place):
            raise OSError(28, "No space left on device")
        return write(module, folder)

    monkeypatch.setattr(cli, "save", full)
    monkeypatch.setattr("tempfile.tempdir", str(folders.folder))
    folders.run("first", *FAST, "+trainer.limit_train_batches=2")
    (elsewhere,) = folders.folder.glob("lightning-mpq-*")
    assert (elsewhere / "lightning_mpq.json").is_file()
    assert str(elsewhere) in caplog.text


def test_no_cache_trains_each_time(folders: Folders) -> None:
    for name in ("first", "second"):
        folders.run(name, *FAST, "cache_dir=null")
    assert folders.fits == 2
    assert not folders.cache.exists()
