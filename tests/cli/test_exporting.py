"""What the command writes for runtimes: through targets, verified, refused before anything is trained."""

import logging
from pathlib import Path

import pytest
import torch
from helpers.command import composed
from helpers.trainer import SmallClassifier, SmallData
from torch.utils.data import DataLoader, Dataset

import lightning_mpq as mpq
from lightning_mpq.cli.exporting import path_of, requested
from lightning_mpq.cli.own_model import drop_what_is_ours
from lightning_mpq.cli.run import run as run_job
from lightning_mpq.targets import OnnxRuntime, Torch, Vllm

pytestmark = pytest.mark.filterwarnings("ignore")


class Named(Dataset):
    """Batches as those of a tokenizer: a mapping of what forward takes, the labels among them."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        values = torch.Generator().manual_seed(number)
        ids = torch.randint(0, 12, (6,), generator=values)
        return {"input_ids": ids, "attention_mask": torch.ones(6), "labels": ids.sum() % 3}


class NamedData(SmallData):
    def train_dataloader(self) -> DataLoader:
        return DataLoader(Named(), batch_size=8)

    val_dataloader = train_dataloader


class OfNames(SmallClassifier):
    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(12, 16)
        self.head = torch.nn.Linear(16, 3)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        weights = attention_mask.unsqueeze(-1)
        return self.head((self.table(input_ids) * weights).sum(1) / weights.sum(1))

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(self(batch["input_ids"], batch["attention_mask"]), batch["labels"])

    validation_step = training_step


class WithoutFile(mpq.Target):
    name = "without"


def run(folder: Path, *overrides: str, kind: str = "helpers.trainer.Small") -> None:
    model, data = ("Classifier", "Data") if kind.endswith("Small") else ("OfNames", "NamedData")
    given = [f"model._target_={kind}{model}", f"data._target_={kind}{data}", "trainer.accelerator=cpu"]
    given += ["trainer.enable_progress_bar=false", "callbacks.mpq.calibration_batches=1", "cache_dir=null"]
    given += ["budget.average_bits=8", "train=false", "callbacks.mpq.compare=false", "test=false", *overrides]
    config = drop_what_is_ours(composed(*given), given)
    config.output_dir = str(folder)
    run_job(config)


def test_the_file_of_the_target_is_written_and_verified(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for package in OnnxRuntime.packages:
        pytest.importorskip(package, reason="needs the extra 'onnx'")
    for _ in range(2):  # a second run replaces what the first wrote
        caplog.clear()
        with caplog.at_level(logging.INFO):
            run(tmp_path, "target=onnxruntime")
        said = next(line for line in caplog.messages if line.startswith("Exported"))
        assert f"{tmp_path / 'model.onnx'}: loaded " in said
        assert "layers at their widths; outputs differ by" in said
    assert mpq.verify(tmp_path / "model.onnx").target == "onnxruntime"


def test_batches_that_are_mappings_give_files_of_any_batch_and_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in OnnxRuntime.packages:
        pytest.importorskip(package, reason="needs the extra 'onnx'")
    import onnxruntime

    module = type("Module", (), {"OfNames": OfNames, "NamedData": NamedData})
    monkeypatch.setitem(__import__("sys").modules, "named_batches", module)
    run(tmp_path, "target=onnxruntime", "export=[onnx,safetensors]", kind="named_batches.")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    packed = mpq.load(tmp_path / "model", OfNames()).eval()
    assert {each.name for each in session.get_inputs()} == {"input_ids", "attention_mask"}
    inputs = {"input_ids": torch.randint(0, 12, (3, 6)), "attention_mask": torch.ones(3, 6)}
    (found,) = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    assert torch.allclose(torch.as_tensor(found), packed(**inputs), atol=0.05)


def test_what_is_asked_for_is_looked_at_before_anything_is_trained(tmp_path: Path) -> None:
    assert requested(None, Torch(), tmp_path) == requested("target", Torch(), tmp_path) == ()
    assert requested(["safetensors", "target"], WithoutFile(), tmp_path) == ()
    with pytest.raises(TypeError, match="export=without: that target has no file"):
        requested("without", WithoutFile(), tmp_path)
    with pytest.raises(ValueError, match="export=tensorrt is not known. Use target, torch, onnxruntime"):
        requested("tensorrt", Torch(), tmp_path)
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="vllm is not empty, and was not exported here"):
        requested("vllm", Vllm(), tmp_path)


def test_what_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"The target 'onnxruntime' needs .*lightning_mpq\[onnx\]"):
        requested("onnx", Torch(), tmp_path)


def test_files_have_the_name_model_and_folders_that_of_the_runtime(tmp_path: Path) -> None:
    assert path_of(OnnxRuntime(), tmp_path) == tmp_path / "model.onnx"
    assert path_of(Vllm(), tmp_path) == tmp_path / "vllm"
