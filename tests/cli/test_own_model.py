"""Models, data and weights of the user's own in the command's configuration."""

import json
import logging
from pathlib import Path

import lightning as L
import pytest
import torch
from helpers.command import OWN, composed, own
from helpers.trainer import SmallClassifier, SmallData

from lightning_mpq import load
from lightning_mpq.cli.own_model import built, drop_what_is_ours
from lightning_mpq.cli.run import run

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trained") / "best.ckpt"
    torch.manual_seed(3)
    trainer = L.Trainer(
        max_epochs=1, logger=False, enable_checkpointing=False, accelerator="cpu", enable_model_summary=False
    )
    trainer.fit(SmallClassifier(), SmallData())
    trainer.save_checkpoint(path)
    return path


def test_what_was_meant_for_our_model_does_not_reach_the_users() -> None:
    config = composed(*OWN, "+model.width=3")
    assert set(drop_what_is_ours(config, [*OWN, "+model.width=3"]).model) == {"_target_", "width"}
    assert set(drop_what_is_ours(config, OWN).data) == {"_target_"}
    assert drop_what_is_ours(config, ["data.batch_size=3"]) == config


def test_a_checkpoint_is_quantized_without_training(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(L.Trainer, "fit", lambda *args, **kwargs: pytest.fail("trained"))
    with caplog.at_level(logging.INFO):
        metric = run(own(tmp_path, f"ckpt_path={checkpoint}"))
    report = json.loads((tmp_path / "report.json").read_text())
    assert metric == next(iter(report["models"][-1]["metrics"].values()))
    assert (tmp_path / "report.html").is_file()
    assert "Nothing is trained: the model of " in caplog.text
    packed, trained = SmallClassifier(), torch.load(checkpoint)["state_dict"]
    load(tmp_path / "model", packed)
    for name, value in packed.state_dict().items():
        if "weight" in name and value.shape == trained[name].shape and trained[name].ndim > 1:
            assert torch.nn.functional.cosine_similarity(value.flatten(), trained[name].flatten(), 0) > 0.8


def test_without_training_the_model_is_taken_as_it_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(L.Trainer, "fit", lambda *args, **kwargs: pytest.fail("trained"))
    run(own(tmp_path, "train=false", "callbacks.mpq.compare=false"))
    assert (tmp_path / "model" / "lightning_mpq.json").is_file()


def test_a_checkpoint_can_be_fine_tuned(checkpoint: Path, tmp_path: Path) -> None:
    run(own(tmp_path, f"ckpt_path={checkpoint}", "finetune=qat", "finetune.epochs=1"))
    assert json.loads((tmp_path / "report.json").read_text())["models"][-1]["name"] == "fine-tuned"


def test_saved_hyperparameters_make_the_model_unless_others_are_given(tmp_path: Path) -> None:
    made = Hyper(width=5)
    trainer = L.Trainer(max_epochs=0, logger=False, enable_checkpointing=False, accelerator="cpu")
    trainer.strategy.connect(made)
    trainer.save_checkpoint(tmp_path / "h.ckpt")
    target = [f"model._target_={__name__}.Hyper", f"ckpt_path={tmp_path / 'h.ckpt'}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(__import__("sys").modules, __name__, __import__("types").SimpleNamespace(Hyper=Hyper))
        found = built(drop_what_is_ours(composed(*target), target))
        assert found.hparams == {"width": 5, "name": "plain"}
        assert torch.equal(found.layer.weight, made.layer.weight)
        other = [*target, "+model.name=other"]
        assert built(drop_what_is_ours(composed(*other), other)).hparams == {"width": 5, "name": "other"}


class Hyper(L.LightningModule):
    def __init__(self, width: int, name: str = "plain") -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(width, 2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is no file; give a checkpoint that Lightning wrote"),
        (b"text", "is no checkpoint, or holds more than weights"),
        ({"weights": 1}, "holds no state_dict"),
        ({"state_dict": {"a": torch.zeros(1)}}, "do not fit helpers.trainer.SmallClassifier as model makes it"),
        ({"state_dict": {}, "callbacks": {"x": Path("y")}}, "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1"),
    ],
)
def test_what_is_no_checkpoint_of_the_model_is_refused(content: object, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(ValueError, match=message):
        built(own(tmp_path, f"ckpt_path={path}"))
