"""What the callback cannot work with: a sentence, and the model as it was."""

import lightning as L
import pytest
import torch
from helpers.trainer import SmallClassifier, SmallData, make_callback, make_trainer, trained
from torch.utils.data import DataLoader

from lightning_mpq.errors import InfeasibleBudgetError, NonFiniteError
from lightning_mpq.modules import packed_layers
from lightning_mpq.options import CandidateOptions
from lightning_mpq.trainer.callback import MixedPrecisionQuantization

pytestmark = pytest.mark.filterwarnings("ignore")


class Broken(SmallData):
    """Calibration data of the test's choice."""

    def __init__(self, batches: list) -> None:
        super().__init__()
        self.batches = batches

    def calibration_dataloader(self) -> DataLoader:
        return self.batches


@pytest.mark.parametrize(
    ("batches", "error", "said"),
    [
        ([], ValueError, "no batch to calibrate on"),
        ([{"pictures": torch.zeros(2, 1, 6, 6)}], TypeError, "forward_fn"),
        ([(torch.zeros(2, 7),)], Exception, "forward_fn"),
        ([(torch.full((2, 1, 6, 6), torch.nan), torch.zeros(2, dtype=torch.long))], NonFiniteError, "batch 1"),
    ],
)
def test_calibration_data_that_cannot_be_used_leave_the_model_as_it_was(tmp_path, batches, error, said):
    L.seed_everything(0, verbose=False)
    module, mixed = SmallClassifier(), make_callback()
    plain = trained(tmp_path)[1].state_dict()
    L.seed_everything(0, verbose=False)
    with pytest.raises(error, match=said):
        make_trainer(tmp_path, mixed).fit(module, Broken(batches))
    assert not packed_layers(module)
    assert module.state_dict().keys() == plain.keys()
    assert not (tmp_path / "report.json").exists()


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"bits": 1.0}, InfeasibleBudgetError, "least"),
        ({"candidates": CandidateOptions(keep_float=["nothing*"])}, ValueError, "matches no layer"),
        ({"candidates": CandidateOptions(bits=(2,), min_bits={"*": 4})}, ValueError, "No candidate is left"),
    ],
)
def test_settings_that_cannot_be_met_leave_the_model_as_it_was(tmp_path, arguments, error, said):
    module, mixed = SmallClassifier(), make_callback(**arguments)
    trainer = make_trainer(tmp_path, mixed)
    with pytest.raises(error, match=said):
        trainer.fit(module, SmallData())
    assert not packed_layers(module)
    assert all(torch.isfinite(value).all() for value in module.state_dict().values())


def test_a_weight_that_is_not_finite_is_named_and_nothing_is_changed(tmp_path):
    class Spoil(L.Callback):
        def on_train_end(self, trainer, pl_module):
            pl_module.network[4].weight.data[0, 0, 0, 0] = torch.nan

    module = SmallClassifier()
    with pytest.raises(NonFiniteError, match="network.4"):
        make_trainer(tmp_path, Spoil(), make_callback()).fit(module, SmallData())
    assert not packed_layers(module)


def test_a_validation_that_fails_in_the_comparison_costs_its_metrics_and_no_work(tmp_path):
    class Fragile(SmallClassifier):
        calls = 0

        def on_validation_epoch_end(self) -> None:
            self.calls += 1
            if self.calls == 6:  # sanity check, two epochs, then float, uniform, additive: this is the additive plan
                raise RuntimeError("the user's own code fails")

    module = Fragile()
    with pytest.warns(UserWarning, match="Validation failed .*the user's own code fails"):
        make_trainer(tmp_path, make_callback()).fit(module, SmallData())
    assert packed_layers(module)


@pytest.mark.parametrize("count", [0, -1, 2.5, True])
def test_calibration_batches_must_be_a_positive_integer(count):
    with pytest.raises(ValueError, match="positive integer"):
        MixedPrecisionQuantization(3.0, calibration_batches=count)
