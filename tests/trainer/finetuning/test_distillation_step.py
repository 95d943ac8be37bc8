"""Distillation within a fit, with steps that Lightning allows and a teacher must live with."""

import pytest
from helpers.finetuning import finetuning, kind_of
from helpers.trainer import SmallClassifier, SmallData, make_trainer

from lightning_mpq.options import FinetuneOptions

pytestmark = pytest.mark.filterwarnings("ignore")


class Skips(SmallClassifier):
    """Skips a batch before the network is called, and another after it."""

    def training_step(self, batch, batch_idx):
        if batch_idx == 1:
            return None
        loss = super().training_step(batch, batch_idx)
        return None if batch_idx == 2 else {"loss": loss}


def test_a_skipped_batch_is_not_distilled(tmp_path):
    module = Skips()
    mixed = finetuning(finetune=FinetuneOptions(distill=1.0))
    make_trainer(tmp_path, mixed, max_epochs=1).fit(module, SmallData())
    assert kind_of(module) == "packed"


def test_what_finetuning_gains_is_told_without_the_batches_that_are_skipped(tmp_path, caplog):
    class SkipsRareLabels(SmallClassifier):
        skipped = 0

        def training_step(self, batch, batch_idx):
            if not self.training and self.skipped % 2 == 0:  # every other of the batches to calibrate on
                self.skipped += 1
                return None
            self.skipped += not self.training
            return super().training_step(batch, batch_idx)

    mixed = finetuning(compare=True)
    make_trainer(tmp_path, mixed, max_epochs=1).fit(SkipsRareLabels(), SmallData())
    assert 0 < mixed.report.finetuning.loss_after < 3
