"""What would fail at the end of a fit fails at its start, before a step is trained; all else is left to the end."""

import lightning as L
import pytest
import torch
from helpers.finetuning import kind_of
from helpers.state import same, state_of
from helpers.trainer import SmallClassifier, SmallData, make_trainer
from lightning.pytorch.callbacks import ModelPruning
from torch import nn
from torch.utils.data import DataLoader

from lightning_mpq.allocation import Budget, CustomCost, Rules
from lightning_mpq.errors import InfeasibleBudgetError
from lightning_mpq.network.likelihood import Categorical
from lightning_mpq.options import CandidateOptions, CurvatureOptions, SolverOptions
from lightning_mpq.pipeline.pipeline import Pipeline
from lightning_mpq.policy import BitPolicy
from lightning_mpq.schemes import WeightScheme
from lightning_mpq.trainer.callback import MixedPrecisionQuantization

pytestmark = pytest.mark.filterwarnings("ignore")


class Dicts(SmallData):
    """Batches that only a forward_fn can read."""

    def train_dataloader(self):
        items = [{"image": image, "label": label} for image, label in zip(self.images, self.labels, strict=True)]
        return DataLoader(items, batch_size=16)


class OfDicts(SmallClassifier):
    def training_step(self, batch, batch_idx):
        return super().training_step((batch["image"], batch["label"]), batch_idx)


class Probabilities(SmallClassifier):
    def forward(self, images):
        return self.network(images).softmax(1)


class Lazy(SmallClassifier):
    def __init__(self):
        super().__init__()
        self.network[8] = nn.LazyLinear(3)

    def configure_optimizers(self):
        return torch.optim.SGD(self.network[:8].parameters(), lr=0.05)


def refused(tmp_path, error, said, module=None, data=None, mixed=None, **settings):
    """Fit, and see that the error comes before the first step, and that the model is as it was."""
    module = module or SmallClassifier()
    before = state_of(module)
    mixed = mixed or MixedPrecisionQuantization(4.5, calibration_batches=3, **settings)
    trainer = make_trainer(tmp_path, mixed)
    with pytest.raises(error, match=said):
        trainer.fit(module, data or SmallData())
    assert trainer.global_step == 0
    assert same(before, module.state_dict())
    assert kind_of(module) == "float"
    assert module.training


def test_a_budget_that_nothing_can_keep(tmp_path):
    refused(tmp_path, InfeasibleBudgetError, "least", mixed=MixedPrecisionQuantization(1.5, compare=False))
    whole = MixedPrecisionQuantization(Budget(bytes=100.0), compare=False)
    refused(tmp_path, InfeasibleBudgetError, "least", mixed=whole)
    for bound in ({"device_bytes": 100.0}, {"mac_average_bits": 1.5}):  # counted on the first batch
        counted = MixedPrecisionQuantization(Budget(**bound), compare=False)
        refused(tmp_path, InfeasibleBudgetError, f"{next(iter(bound))}=.*least", mixed=counted)
    own = CustomCost("wide", lambda group, scheme: 1.0, limit=2)
    refused(tmp_path, InfeasibleBudgetError, "wide", mixed=MixedPrecisionQuantization(Budget(8.0, custom=(own,))))


def test_a_trained_model_is_not_profiled_for_a_budget_that_nothing_can_keep(tmp_path, monkeypatch):
    mixed = MixedPrecisionQuantization(1.5)
    monkeypatch.setattr(Pipeline, "decide", None)
    with pytest.raises(InfeasibleBudgetError, match="least"):
        mixed.quantize_trained(make_trainer(tmp_path), SmallClassifier(), SmallData())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"candidates": CandidateOptions(keep_float=["nothing.*"])}, "nothing"),
        ({"candidates": CandidateOptions(keep_float=["*"])}, "no layer|keep_float"),
        ({"solver": SolverOptions(rules=Rules(equal=[("gone.*", "network.0")]))}, "gone"),
        ({"policy": BitPolicy({"network.7": WeightScheme(bits=4)})}, "network.7"),
    ],
)
def test_patterns_rules_and_plans_of_other_models(tmp_path, settings, said):
    refused(tmp_path, (ValueError, TypeError), said, **settings)


def test_training_batches_from_several_loaders(tmp_path):
    class Several(SmallData):
        def train_dataloader(self):
            return {"one": super().train_dataloader(), "two": super().train_dataloader()}

    refused(tmp_path, ValueError, "train_dataloader gives dict.*calibration_dataloader", data=Several())


def test_a_batch_that_the_model_does_not_take(tmp_path):
    refused(tmp_path, TypeError, "(?s)a dict with 'image'.*forward_fn", module=OfDicts(), data=Dicts())


def test_outputs_whose_meaning_nobody_can_tell(tmp_path):
    refused(tmp_path, ValueError, "look like probabilities", module=Probabilities())


@pytest.mark.parametrize(
    ("make", "data", "settings"),
    [
        (OfDicts, Dicts, {"forward_fn": lambda model, batch: model(batch["image"])}),
        (Probabilities, SmallData, {"curvature": CurvatureOptions(likelihood=Categorical())}),
        (Probabilities, SmallData, {"curvature": CurvatureOptions(estimator="hessian", loss="task")}),
    ],
)
def test_who_says_how_is_let_through(tmp_path, make, data, settings):
    module = make()
    mixed = MixedPrecisionQuantization(4.5, calibration_batches=3, compare=False, **settings)
    make_trainer(tmp_path, mixed, max_epochs=1, limit_val_batches=0).fit(module, data())
    assert kind_of(module) == "packed"


def test_calibration_data_of_its_own_may_look_different(tmp_path):
    data = Dicts()
    data.calibration_dataloader = lambda: SmallData().train_dataloader()
    module = OfDicts()
    mixed = MixedPrecisionQuantization(4.5, calibration_batches=3, compare=False)
    make_trainer(tmp_path, mixed, max_epochs=1, limit_val_batches=0).fit(module, data)
    assert kind_of(module) == "packed"


@pytest.mark.parametrize("sanity_steps", [0, 1])
def test_lazy_layers_put_it_off(tmp_path, sanity_steps):
    lazy, callback = Lazy(), MixedPrecisionQuantization(4.5, compare=False)
    make_trainer(tmp_path, callback, max_epochs=1, num_sanity_val_steps=sanity_steps).fit(lazy, SmallData())
    assert kind_of(lazy) == "packed"


def test_lazy_layers_are_tried_on_the_second_batch(tmp_path):
    class OfSteps(Lazy):
        steps = 0

        def training_step(self, batch, batch_idx):
            self.steps += 1
            return super().training_step(batch, batch_idx)

    lazy, callback = OfSteps(), MixedPrecisionQuantization(0.5)
    with pytest.raises(ValueError, match=r"average_bits=0\.5 is below the least possible"):
        make_trainer(tmp_path, callback, max_epochs=2, num_sanity_val_steps=0).fit(lazy, SmallData())
    assert lazy.steps == 1


def test_pruned_weights_put_it_off(tmp_path):
    pruned = SmallClassifier()
    callbacks = [ModelPruning("l1_unstructured", amount=0.3), MixedPrecisionQuantization(4.5, compare=False)]
    make_trainer(tmp_path, *callbacks, max_epochs=1).fit(pruned, SmallData())
    assert kind_of(pruned) == "packed"


def test_training_does_not_feel_it(tmp_path):
    """Dropout, shuffling and statistics go on as without the callback."""

    class Keep(L.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            self.state = state_of(pl_module)

    states = []
    for extra in ((), (MixedPrecisionQuantization(4.5, compare=False),)):
        L.seed_everything(0, verbose=False)
        keep = Keep()
        make_trainer(tmp_path, keep, *extra).fit(SmallClassifier(), SmallData())
        states.append(keep.state)
    assert same(*states)


class Student(SmallClassifier):
    def __init__(self):
        super().__init__()
        self.teacher = nn.Sequential(nn.Flatten(), nn.Linear(36, 512), nn.Linear(512, 3)).requires_grad_(False)


@pytest.mark.parametrize("own", [False, True])
def test_a_budget_of_bytes_for_what_the_model_uses_is_not_refused_for_the_teacher_beside_it(tmp_path, own):
    module, data = Student(), SmallData()
    teacher = 4 * sum(value.numel() for value in module.teacher.parameters())
    budget = Budget(bytes=4.0 * (512 + 3) + 1500)
    assert budget.bytes < teacher / 16
    if own:
        data.calibration_dataloader = data.train_dataloader
    mixed = MixedPrecisionQuantization(budget, calibration_batches=3, compare=False)
    make_trainer(tmp_path, mixed, max_epochs=1, limit_val_batches=0).fit(module, data)
    assert kind_of(module) == "packed"
    refused(
        tmp_path,
        InfeasibleBudgetError,
        "least",
        module=Student(),
        mixed=MixedPrecisionQuantization(Budget(bytes=1500.0)),
    )
