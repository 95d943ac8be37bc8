"""What fine-tuning did to the task loss is measured, kept over a kill, reported, and said where it harmed."""

import json
import warnings

import pytest
import torch
from helpers.finetuning import Kill, Killed, finetuning, fit
from helpers.trainer import SmallClassifier, SmallData, trained

from lightning_mpq.options import FinetuneOptions
from lightning_mpq.report import FinetuningRow, Report
from lightning_mpq.report.table import print_report

pytestmark = pytest.mark.filterwarnings("ignore")


def ordered_data() -> SmallData:
    data = SmallData()
    data.calibration_dataloader = lambda: torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(data.images, data.labels), batch_size=32
    )
    return data


def calibration_loss(module: SmallClassifier, data: SmallData) -> float:
    with torch.no_grad():
        return float(torch.nn.functional.cross_entropy(module.eval()(data.images[:64]), data.labels[:64]))


def test_losses_are_those_of_the_rounded_and_of_the_packed_model(tmp_path):
    data = ordered_data()
    _, rounded = fit(tmp_path / "a", finetuning(3.0, finetune_epochs=0), data=data)
    mixed = finetuning(3.0, compare=True, finetune=FinetuneOptions(learning_rate=0.5, distill=1.0))
    _, module = fit(tmp_path / "b", mixed, data=data)
    row = mixed.report.finetuning
    assert row.loss_before == pytest.approx(calibration_loss(rounded, data), rel=1e-5)
    assert row.loss_after == pytest.approx(calibration_loss(module, data), rel=1e-5)
    assert row.loss_after < row.loss_before
    again = Report.from_dict(json.loads(json.dumps(mixed.report.to_dict())))
    assert again.finetuning == row


def test_a_model_made_worse_is_said_with_both_losses(tmp_path):
    with pytest.warns(UserWarning, match=r"Fine-tuning has made the model worse: .* -> .*Lower the learning rate"):
        trained(tmp_path, finetuning(3.0, finetune=FinetuneOptions(learning_rate=1000.0)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message="Fine-tuning has made")
        trained(tmp_path, finetuning(3.0, finetune=FinetuneOptions(learning_rate=0.5)))


def test_a_resumed_fit_knows_the_loss_it_began_with(tmp_path):
    whole = finetuning(3.0, compare=True)
    fit(tmp_path / "whole", whole, data=ordered_data())
    with pytest.raises(Killed):
        fit(tmp_path / "killed", finetuning(3.0, compare=True), Kill("on_train_epoch_start", 3), data=ordered_data())
    resumed = finetuning(3.0, compare=True)
    fit(tmp_path / "resumed", resumed, data=ordered_data(), resume=tmp_path / "killed" / "last.ckpt")
    assert resumed.report.finetuning == whole.report.finetuning


def test_a_training_step_that_cannot_be_asked_costs_the_figure_not_the_fit(tmp_path):
    class Picky(SmallClassifier):
        def training_step(self, batch, batch_idx):
            if not self.training:
                raise RuntimeError("only in training")
            return super().training_step(batch, batch_idx)

    mixed = finetuning(3.0, compare=True)
    with pytest.warns(UserWarning, match=r"task loss .* could not be measured.*only in training"):
        fit(tmp_path, mixed, module=Picky())
    assert mixed.report.finetuning is None
    assert mixed.report["fine-tuned"].metrics


def test_the_summary_shows_it(tmp_path, capsys):
    mixed = finetuning(3.0, compare=True)
    trained(tmp_path, mixed)
    print_report(mixed.report)
    row = mixed.report.finetuning
    assert isinstance(row, FinetuningRow)
    assert f"Fine-tuning: task loss on the calibration batches {row.loss_before:.4g}" in capsys.readouterr().out


@pytest.mark.parametrize(("batchnorm", "said"), [("average", True), ("frozen", False)])
def test_batchnorm_in_evaluation_mode_is_said(tmp_path, batchnorm, said):
    module = SmallClassifier().eval()
    mixed = finetuning(3.0, quantize_at=0, finetune=FinetuneOptions(epochs=1, batchnorm=batchnorm))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(tmp_path, mixed, module=module)
    messages = [str(each.message) for each in caught if "BatchNorm layers" in str(each.message)]
    assert bool(messages) == said
    if said:
        assert "2 of 2 BatchNorm layers ('network.1', ...) are in evaluation mode" in messages[0]
