"""What version 0.1 wrote before the files of the package moved can still be read; see tests/data/before_the_move."""

import json
import shutil
from pathlib import Path

import lightning as L
import pytest
import torch
from helpers.finetuning import Recorder, kind_of
from helpers.trainer import SmallClassifier, SmallData, make_trainer

import lightning_mpq as mpq
from lightning_mpq.report import Report

DATA = Path(__file__).parents[2] / "data" / "before_the_move"
EXPECTED = {name: torch.tensor(value) for name, value in json.loads((DATA / "outputs.json").read_text()).items()}
IMAGES = SmallData().images[:4]
pytestmark = pytest.mark.filterwarnings("ignore")


def outputs(module: L.LightningModule) -> torch.Tensor:
    assert kind_of(module) == "packed"
    with torch.no_grad():
        return module.eval()(IMAGES)


@pytest.mark.parametrize(
    "load",
    [
        lambda: mpq.load(DATA / "saved", SmallClassifier()),
        lambda: mpq.load(DATA / "packed.ckpt", SmallClassifier()),
        lambda: mpq.load(DATA / "packed.ckpt", SmallClassifier),
        lambda: SmallClassifier.load_from_checkpoint(DATA / "packed.ckpt"),
    ],
    ids=["folder", "into an instance", "from a class", "by Lightning alone"],
)
def test_packed_models(load):
    torch.testing.assert_close(outputs(load()), EXPECTED["packed"], rtol=1e-5, atol=1e-5)


def test_the_module_that_checkpoints_name_stays_where_it_was():
    hyperparameters = torch.load(DATA / "packed.ckpt", weights_only=True)["hyper_parameters"]
    assert hyperparameters["_instantiator"].rpartition(".")[0] == "lightning_mpq.plain_loading"


def test_a_checkpoint_written_during_fine_tuning_resumes_and_converts(tmp_path):
    assert kind_of(mpq.load(DATA / "finetuning.ckpt", SmallClassifier())) == "packed"
    recorder = Recorder()
    mixed = mpq.MixedPrecisionQuantization(
        4.5,
        candidates=mpq.CandidateOptions(bits=(2, 3, 4, 8)),
        calibration_batches=2,
        finetune=mpq.FinetuneOptions(distill=1.0),
        finetune_epochs=2,
        report_path=None,
    )
    module = SmallClassifier()
    shutil.copy(DATA / "finetuning.ckpt", tmp_path)  # ModelCheckpoint may delete what it finds
    make_trainer(tmp_path, mixed, recorder).fit(module, SmallData(), ckpt_path=tmp_path / "finetuning.ckpt")
    assert recorder.epochs() == ["fake"]
    assert mixed.report["fine-tuned"].metrics["val_accuracy"] > 0.9
    torch.testing.assert_close(outputs(module), EXPECTED["finetuned"], rtol=0.05, atol=0.05)


def test_policies_reports_and_taylor_models():
    policy = mpq.BitPolicy.load(DATA / "policy.json")
    assert set(policy.by_layer()) == {"network.0", "network.4", "network.8"}
    assert json.loads(policy.to_json())["version"] == 2
    assert mpq.BitPolicy.from_json(policy.to_json()) == policy
    report = Report.from_dict(json.loads((DATA / "report.json").read_text()))
    assert [row.name for row in report.models] == ["float", "uniform 4 bits", "additive", "chosen"]
    taylor = mpq.TaylorModel.load(DATA / "taylor.npz")
    assert mpq.allocate(taylor, mpq.Budget(average_bits=4.5)).policy.weights().keys() == policy.weights().keys()
    assert taylor.predict(policy).value > 0
