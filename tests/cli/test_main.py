import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import lightning as L
import pytest
import torch
from helpers.processes import try_module, try_new_python
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from safetensors.torch import load, save
from test_conf import composed

import lightning_mpq.cli.main as cli
from lightning_mpq import load as load_packed
from lightning_mpq.pipeline.pipeline import Pipeline

pytest.importorskip("sklearn", reason="the default experiment is scikit-learn's digits")

TINY = [
    "model.network.widths=[4,4,8]",
    "trainer.max_epochs=1",
    "trainer.accelerator=cpu",
    "trainer.enable_progress_bar=false",
    "candidates.bits=[2,4,8]",
    "callbacks.mpq.calibration_batches=1",
    "budget.average_bits=6",
]


class Folders:
    """Runs the command's task in folders of its own, and counts fits."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cache = folder / "cache"
        self.folder = folder
        self.fits = 0
        fit = L.Trainer.fit

        def counted(trainer: L.Trainer, *args: object, **kwargs: object) -> None:
            self.fits += 1
            fit(trainer, *args, **kwargs)  # type: ignore[arg-type]

        monkeypatch.setattr(L.Trainer, "fit", counted)

    def run(self, name: str, *overrides: str) -> float | None:
        config = composed(*TINY, f"cache_dir={self.cache}", *overrides)
        config.output_dir = str(self.folder / name)
        return cli.run(config)

    def report(self, name: str) -> dict:
        report = json.loads((self.folder / name / "report.json").read_text())
        report.pop("seconds")
        report["solver"].pop("seconds", None)
        report["receipt"].pop("peak memory, bytes")
        report.pop("frontier")  # other budgets are solved for a fraction of a second each, however fast that is
        return report

    def test_results(self, name: str) -> dict:
        return json.loads((self.folder / name / "test.json").read_text())


LITTLE = ["candidates.rounding=nearest", "selection.policies=1", "selection.rounds=0"]
"""Where it does not matter how a model is quantized."""
FAST = [*LITTLE, "test=false", "callbacks.mpq.compare=false", "+trainer.limit_val_batches=1"]


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
        entry = cli.cache_entry(config, instantiate(config.model), instantiate(config.data))
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


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["experiment=fashion_mnist"], "data.root has no value; give one on the command line: .* data.root=VALUE"),
        (["experiment=fashion_mnist", "data.root=nowhere"], "train-images-idx3-ubyte.gz is missing .*'nowhere'"),
        (["budget.average_bits=-1"], "callbacks.mpq.budget: average_bits must be a positive number, got -1"),
        (["budget.average_bits=0.5"], "average_bits"),
        (["model.network.depth=9"], "model.network: depth must be .* got 9 with 3 stages"),
        (["callbacks.mpq=null"], "callbacks must hold one MixedPrecisionQuantization, got 0"),
        (["metric=val_beauty"], "metric=val_beauty is not among what validation logs: val_loss, val_accuracy"),
        (["+candidates.fixed_bits={nothing*: 3}"], "pattern 'nothing\\*' matches no layer"),
        (["trainer.accelerator=abacus"], "abacus"),
        (["budget.average_bytes=3"], "average_bytes"),
        (["train=no"], "train must be one of True, False, got 'no'"),
        (["test=off"], "test must be one of True, False, got 'off'"),
        (["seed=abc"], "seed must be an integer, got 'abc'"),
        (["callbacks.mpq.compare=no"], "callbacks.mpq: compare must be one of True, False, got 'no'"),
        (["target=onnxruntime", "target.integer_products=no"], "integer_products must be one of True, False, got 'no'"),
        (["model=resnet1000"], "Could not find 'model/resnet1000'"),
        (["data=null"], "data=null: data must be the name of a file .*digits, fashion_mnist.*~data leaves it out"),
        (["budget=3"], "budget=3: budget must be the name of a file .*budget.NAME=VALUE"),
        (["finetune=true"], "finetune=true: finetune must be the name of a file .*: distill, none, qat"),
        (["~solver"], "callbacks.mpq.solver reads what is not there"),
        (["~seed"], "seed is not there, and is needed: leave ~seed out"),
        (["cache_dir="], "cache_dir must be a path or null, got ''"),
        (["output_dir=null"], "output_dir must be a path, got None"),
        (["ckpt_path=false"], "ckpt_path must be a path or null, got False"),
        (["metric=3"], "metric must be the name of a metric or null, got 3"),
        (
            ["callbacks.mpq.quantize_at=1"],
            "quantize_at=1 is for a single fit, .* trainer.max_epochs and, .*finetune.epochs",
        ),
        (["hydra.mode=MULTIRUN", "data=null,digits"], "data=null,digits: data must be the name of a file"),
        (["hydra.mode=MULTIRUN", "seed=1,2", "output_dir=one"], "output_dir=one would be .* Give hydra.sweep.dir=one"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_1(
    overrides: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    monkeypatch.chdir(tmp_path)
    # The experiment overrides nothing of TINY, and the command line all of it.
    arguments = [*(TINY if "experiment" not in overrides[0] else []), *overrides, "hydra/job_logging=none"]
    monkeypatch.setattr(sys, "argv", ["lightning-mpq", *arguments])
    GlobalHydra.instance().clear()
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 1
    said = capfd.readouterr().err
    assert re.search(message, said)
    assert "Traceback" not in said
    if "lightning-mpq: " in said:
        assert len([line for line in said.splitlines() if line.startswith("lightning-mpq: ")]) == 1


@pytest.mark.parametrize("launcher", ["basic", pytest.param("joblib", marks=pytest.mark.slow)])
def test_a_sweep_in_other_processes_trains_once_and_profiles_once(launcher: str, folders: Folders) -> None:
    arguments = ["-m", *TINY, "budget.average_bits=5,6", f"hydra/launcher={launcher}"]
    if launcher == "joblib":  # both jobs at once; its workers end with a Python that ends as usual
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="needs hydra-joblib-launcher")
        command = "from lightning_mpq.cli.main import main; main()"
        finished = try_new_python(command, *arguments, cwd=folders.folder)
    else:
        finished = try_module("lightning_mpq.cli", *arguments, cwd=folders.folder, HYDRA_FULL_ERROR="0")
    assert finished.returncode == 0, finished.stderr
    cache = folders.folder / "outputs" / "cache"
    assert len(list(cache.glob("trained/*.safetensors"))) == 1
    assert len(list(cache.glob("*taylor*"))) == 1
    logs = [path.read_text() for path in folders.folder.glob("multirun/*/*/*/lightning-mpq.log")]
    assert ["Trained weights found" in log for log in logs].count(True) == len(logs) - 1 == 1
    jobs = sorted(path.parent for path in folders.folder.glob("multirun/*/*/*/report.json"))
    assert [job.name for job in jobs] == ["0", "1"]
    bits = [json.loads((job / "report.json").read_text())["models"][-1]["average_bits"] for job in jobs]
    assert bits[0] <= 5 < bits[1] <= 6
    folders.cache = cache
    folders.run("afterwards", f"cache_dir={cache}")
    assert folders.fits == 0
