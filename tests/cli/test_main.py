import json
import re
import sys
from pathlib import Path

import pytest
from helpers.command import TINY, Folders
from helpers.processes import try_module, try_new_python
from hydra.core.global_hydra import GlobalHydra

from lightning_mpq.cli.main import main

pytest.importorskip("sklearn", reason="the default experiment is scikit-learn's digits")


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
        main()
    assert caught.value.code == 1
    said = capfd.readouterr().err
    assert re.search(message, said)
    assert "Traceback" not in said
    if "lightning-mpq: " in said:
        assert len([line for line in said.splitlines() if line.startswith("lightning-mpq: ")]) == 1


@pytest.mark.parametrize("launcher", ["basic", pytest.param("joblib", marks=pytest.mark.slow)])
def test_a_sweep_in_other_processes_trains_once_and_profiles_once(
    launcher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = Folders(tmp_path, monkeypatch)
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
