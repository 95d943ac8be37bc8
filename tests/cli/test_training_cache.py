import sys
from pathlib import Path

import lightning as L
import pytest
import torch
from safetensors.torch import load, save_file
from torch import nn

from lightning_mpq.cli.training_cache import KeepTrained, TrainedWeights, training_key
from lightning_mpq.demo.classifier import Classifier
from lightning_mpq.demo.digits import Digits
from lightning_mpq.demo.resnet import ResNet

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
CONFIG = {"seed": 0, "trainer": {"max_epochs": 1}}


def tiny(seed: int = 0, width: int = 4) -> Classifier:
    torch.manual_seed(seed)
    return Classifier(ResNet(depth=8, widths=(width, 4, 8)))


@pytest.fixture
def entry(tmp_path: Path) -> TrainedWeights:
    entry = TrainedWeights(tmp_path / "cache", "some-key")
    entry.store(tiny().state_dict())
    return entry


def test_weights_come_back_bit_by_bit(entry: TrainedWeights) -> None:
    expected, found = tiny().state_dict(), entry.load()
    assert found is not None
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) and found[name].dtype == value.dtype for name, value in expected.items())


def test_tied_and_strided_weights_are_stored(tmp_path: Path) -> None:
    weight = torch.randn(3, 4).T
    entry = TrainedWeights(tmp_path, "k")
    entry.store({"a": weight, "b": weight})
    found = entry.load()
    assert found is not None
    assert torch.equal(found["a"], weight)
    assert torch.equal(found["b"], weight)


def test_nothing_stored_is_silently_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert TrainedWeights(tmp_path, "k").load() is None
    assert not caplog.records


def test_damaged_and_foreign_entries_are_not_used(entry: TrainedWeights, caplog: pytest.LogCaptureFixture) -> None:
    good = entry.path.read_bytes()
    flipped = bytearray(good)
    flipped[-1] ^= 1  # the last weight's highest byte
    for bad in (good[:-7], bytes(flipped), b"", b"not a model"):
        entry.path.write_bytes(bad)
        caplog.clear()
        assert entry.load() is None
        assert "training again" in caplog.text
    save_file(load(good), entry.path)
    assert entry.load() is None
    other = TrainedWeights(entry.folder, "another-key")
    entry.path.write_bytes(good)
    entry.path.rename(other.path)
    assert other.load() is None


def test_key_depends_on_everything_that_decides_the_weights() -> None:
    key = training_key(CONFIG, tiny(), Digits())
    assert key == training_key(dict(reversed(CONFIG.items())), tiny(), Digits())
    others = [
        training_key(CONFIG | {"seed": 1}, tiny(), Digits()),
        training_key(CONFIG | {"trainer": {"max_epochs": 2}}, tiny(), Digits()),
        training_key(CONFIG, tiny(seed=1), Digits()),
        training_key(CONFIG, tiny(width=3), Digits()),
        training_key(CONFIG, tiny(), Digits(seed=1)),
    ]
    assert None not in others
    assert len({key, *others}) == len(others) + 1


def test_key_depends_on_library_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    key = training_key(CONFIG, tiny(), Digits())
    monkeypatch.setattr("lightning_mpq.cli.training_cache.version", lambda name: "0.0")
    assert training_key(CONFIG, tiny(), Digits()) != key


def test_key_depends_on_the_code_of_layers_and_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some_layer.py").write_text("import torch, own_helper\nclass Some(torch.nn.Linear): ...\n")
    (tmp_path / "own_helper.py").write_text("def f(): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    from some_layer import Some  # type: ignore[import-not-found]

    torch.manual_seed(0)
    model = nn.Sequential(Some(2, 2))
    key = training_key(CONFIG, model, Digits())
    assert key == training_key(CONFIG, model, Digits())
    (tmp_path / "own_helper.py").write_text("def f(): return 1\n")
    assert key != training_key(CONFIG, model, Digits())
    for name in ("some_layer", "own_helper"):
        sys.modules.pop(name)


def test_unknown_content_is_not_kept() -> None:
    class NoFingerprint(L.LightningDataModule): ...

    assert training_key(CONFIG, tiny(), NoFingerprint()) is None
    from_nowhere = type("FromNowhere", (nn.Module,), {"__module__": "a_module_without_file"})
    assert training_key(CONFIG, nn.Sequential(from_nowhere()), Digits()) is None


def test_weights_are_taken_before_later_callbacks_change_them(tmp_path: Path) -> None:
    class Zero(L.Callback):
        def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            for parameter in pl_module.parameters():
                parameter.data.zero_()

    entry = TrainedWeights(tmp_path, "k")
    kept = KeepTrained(entry)
    model = tiny()
    trainer = L.Trainer(
        accelerator="cpu",
        callbacks=[kept, Zero()],
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        limit_train_batches=2,
        limit_val_batches=0,
        logger=False,
        max_epochs=1,
    )
    trainer.fit(model, Digits())
    found = entry.load()
    assert kept.state is not None
    assert found is not None
    assert not model.network.linear.weight.any()
    assert found["network.linear.weight"].any()
    assert all(torch.equal(found[name], value) for name, value in kept.state.items())
