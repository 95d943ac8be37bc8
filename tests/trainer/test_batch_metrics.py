"""Means over validation batches are those that the batches have, logged as tensors or metrics, on any loader."""

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanMetric
from torchmetrics.classification import BinaryAUROC

from lightning_mpq.trainer.batch_metrics import BatchMetrics
from lightning_mpq.trainer.validation import Validation, validation_metrics

pytestmark = pytest.mark.filterwarnings("ignore")


class Logs(L.LightningModule):
    """Logs the same numbers as a tensor and as a metric, and one that is no mean."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.mean, self.area = MeanMetric(), BinaryAUROC()

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        (values,) = batch
        self.mean(values)
        self.area(values, (values > 0.5).long())
        self.log("tensor", values.mean(), on_step=True, on_epoch=True)
        self.log("most", values.max(), reduce_fx=torch.max)
        self.log("step", values.sum(), on_step=True, on_epoch=False)
        if dataloader_idx == 0:
            self.log("mean", self.mean, add_dataloader_idx=False)
            self.log("area", self.area, add_dataloader_idx=False)


class Data(L.LightningDataModule):
    def __init__(self, loaders):
        super().__init__()
        self.values = torch.rand(42, generator=torch.Generator().manual_seed(0))
        self.loaders = loaders

    def val_dataloader(self):
        loaders = [DataLoader(TensorDataset(self.values + at), batch_size=4) for at in range(self.loaders)]
        return loaders if self.loaders > 1 else loaders[0]


def trainer(folder):
    return L.Trainer(logger=False, enable_progress_bar=False, enable_checkpointing=False, default_root_dir=folder)


@pytest.mark.parametrize("loaders", [1, 2])
def test_every_batch_is_noted_with_its_samples(tmp_path, loaders):
    data, noted = Data(loaders), BatchMetrics()
    found = validation_metrics(trainer(tmp_path), Logs(), data, noted)
    suffix = "/dataloader_idx_0" if loaders > 1 else ""
    expected = [(float(part.mean()), float(len(part))) for part in data.values.split(4)]
    for name in (f"tensor_epoch{suffix}", "mean"):
        assert [value for value, _ in noted.batches[name]] == pytest.approx([value for value, _ in expected], rel=1e-4)
        assert [weight for _, weight in noted.batches[name]] == [weight for _, weight in expected]
    assert set(noted.batches) <= set(found)
    assert not {"most", "step"} & set(noted.batches)


def test_means_have_intervals_and_others_have_none(tmp_path):
    values = Validation(trainer(tmp_path), Logs(), Data(1))()
    assert set(values.intervals) == {"tensor_epoch", "mean"}
    for name, (low, high) in values.intervals.items():
        assert low < values[name] < high
