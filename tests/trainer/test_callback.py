"""The callback inside real fits: what it leaves in the model, in files and in everybody else's state."""

import json
from pathlib import Path
from typing import NamedTuple

import lightning as L
import pytest
import torch
from helpers.processes import run_python
from helpers.state import same, state_of
from helpers.trainer import SmallClassifier, SmallData, make_callback, make_trainer, trained
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint, RichProgressBar, StochasticWeightAveraging
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from lightning_mpq import load
from lightning_mpq.allocation import Budget, allocate
from lightning_mpq.errors import CorruptModelError
from lightning_mpq.modules import packed_layers, stored_bytes
from lightning_mpq.options import (
    CandidateOptions,
    CurvatureOptions,
    RepairOptions,
    SolverOptions,
)
from lightning_mpq.pipeline.pipeline import Pipeline
from lightning_mpq.policy import BitPolicy
from lightning_mpq.schemes import WeightScheme
from lightning_mpq.targets import export_for
from lightning_mpq.targets.exporting import promised_bytes
from lightning_mpq.trainer.callback import MixedPrecisionQuantization

pytestmark = pytest.mark.filterwarnings("ignore")
LAYERS = {"network.0", "network.4", "network.8"}


class Fitted(NamedTuple):
    """A fit that has ended, which tests look at and leave as it is."""

    mixed: MixedPrecisionQuantization
    trainer: L.Trainer
    module: SmallClassifier

    @property
    def folder(self) -> Path:
        return Path(self.trainer.logger.log_dir)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    folder, mixed = tmp_path_factory.mktemp("fitted"), make_callback()
    return Fitted(mixed, *trained(folder, mixed, logger=CSVLogger(folder)))


def test_fit_ends_with_a_packed_model_within_budget(fitted):
    mixed, _, module = fitted
    assert set(packed_layers(module)) == LAYERS
    weights = sum(group.weight_count for group in mixed.taylor.groups)
    average = 8 * stored_bytes(module).packed / weights
    assert average <= 4.5
    assert average == pytest.approx(mixed.allocation.costs["average_bits"])
    assert mixed.report["chosen"].average_bits == pytest.approx(average)
    assert {name: layer.scheme for name, layer in packed_layers(module).items()} == mixed.policy.weights()


def test_report_holds_four_models_with_the_modules_own_metrics(fitted):
    report = json.loads((fitted.folder / "report.json").read_text())
    assert [row["name"] for row in report["models"]] == ["float", "uniform 5 bits", "additive", "chosen"]
    assert all(set(row["metrics"]) == {"val_accuracy", "val_loss"} for row in report["models"])
    assert report["models"][0]["stored_bytes"] > 3 * report["models"][3]["stored_bytes"] / 2
    assert {group["group"] for group in report["groups"]} == LAYERS
    shares = sum(group["predicted_share"] for group in report["groups"])
    assert shares == pytest.approx(report["models"][3]["predicted_loss"])
    stages = {"round", "profile", "allocate", "select", "quantize", "frontier", "compare", "stability"}
    assert set(report["seconds"]) == stages
    assert report["samples"] == 48


def test_metrics_in_the_report_are_those_of_a_later_validation(fitted, tmp_path):
    mixed, _, module = fitted
    again = make_trainer(tmp_path).validate(module, SmallData(), verbose=False)[0]
    assert mixed.report["chosen"].metrics == pytest.approx(again)
    float_module = trained(tmp_path)[1]
    again = make_trainer(tmp_path).validate(float_module, SmallData(), verbose=False)[0]
    assert mixed.report["float"].metrics == pytest.approx(again)


def test_training_and_everybody_elses_state_are_bit_identical(tmp_path):
    def run(*ours: L.Callback):
        seen = {}

        class Recorder(L.Callback):
            def on_train_epoch_end(self, trainer, pl_module):
                seen[trainer.current_epoch] = state_of(pl_module)

        best = ModelCheckpoint(tmp_path / f"best{len(ours)}", monitor="val_accuracy", mode="max", save_last=True)
        trained(tmp_path, Recorder(), *ours, best, enable_checkpointing=True)
        return seen, best.best_model_score, Path(best.best_model_path).name, torch.rand(3)

    plain, mixed = run(), run(make_callback())
    assert plain[0].keys() == mixed[0].keys()
    assert all(same(plain[0][epoch], mixed[0][epoch]) for epoch in plain[0])
    assert plain[1:3] == mixed[1:3]
    assert torch.equal(plain[3], mixed[3])


def test_the_logger_gets_the_numbers_of_the_report_and_nothing_of_the_trials(fitted):
    mixed = fitted.mixed
    rows = (fitted.folder / "metrics.csv").read_text().splitlines()
    last = dict(zip(rows[0].split(","), rows[-1].split(","), strict=True))
    assert float(last["mpq/chosen/val_accuracy"]) == pytest.approx(mixed.report["chosen"].metrics["val_accuracy"])
    assert float(last["mpq/chosen/average_bits"]) == pytest.approx(mixed.report["chosen"].average_bits)
    column = rows[0].split(",").index("val_accuracy")
    assert len([row for row in rows[1:] if row.split(",")[column]]) == 2  # one an epoch
    assert (fitted.folder / "report.json").exists()


@pytest.mark.parametrize("bars", [[RichProgressBar()], []])
def test_the_table_and_the_bar_are_shown_where_the_trainer_shows_its_own(tmp_path, capsys, bars):
    trained(tmp_path, *bars, make_callback(), enable_progress_bar=True, max_epochs=1)
    shown = capsys.readouterr().out
    assert "chosen" in shown
    assert "network.4" in shown


def test_nothing_is_shown_where_the_trainer_shows_nothing(tmp_path, capsys):
    trained(tmp_path, make_callback(), max_epochs=1)
    assert capsys.readouterr().out == ""


def test_a_checkpoint_of_the_packed_model_opens_in_a_new_process(fitted, tmp_path):
    mixed, trainer, module = fitted
    trainer.save_checkpoint(tmp_path / "packed.ckpt")
    expected = make_trainer(tmp_path).test(module, SmallData(), verbose=False)[0]
    code = f"""
import json, warnings
warnings.filterwarnings("ignore")
from helpers.trainer import SmallClassifier, SmallData, make_trainer
from lightning_mpq.trainer.callback import MixedPrecisionQuantization
from lightning_mpq import load
folder, file = {str(tmp_path)!r}, {str(tmp_path / "packed.ckpt")!r}
mixed = MixedPrecisionQuantization(4.5)
by_trainer = make_trainer(folder, mixed).test(SmallClassifier(), SmallData(), ckpt_path=file, verbose=False)[0]
by_hand = make_trainer(folder).test(load(file, SmallClassifier()), SmallData(), verbose=False)[0]
print(json.dumps([by_trainer, by_hand, mixed.policy.to_json()]))
"""
    by_trainer, by_hand, policy = json.loads(run_python(code).splitlines()[-1])
    assert by_trainer == expected
    assert by_hand == expected
    assert policy == mixed.policy.to_json()


def test_a_packed_checkpoint_cannot_be_trained_on_and_a_float_one_is_left_alone(fitted, tmp_path):
    trainer = fitted.trainer
    trainer.save_checkpoint(tmp_path / "packed.ckpt")
    with pytest.raises(ValueError, match="holds a packed model, which cannot be trained on"):
        make_trainer(tmp_path, make_callback()).fit(SmallClassifier(), SmallData(), ckpt_path=tmp_path / "packed.ckpt")
    trainer, _ = trained(tmp_path)
    trainer.save_checkpoint(tmp_path / "float.ckpt")
    module = SmallClassifier()
    make_trainer(tmp_path, make_callback()).test(module, SmallData(), ckpt_path=tmp_path / "float.ckpt", verbose=False)
    assert not packed_layers(module)
    with pytest.raises(CorruptModelError, match="holds a float model"):
        load(tmp_path / "float.ckpt", SmallClassifier())
    (tmp_path / "broken.ckpt").write_bytes((tmp_path / "packed.ckpt").read_bytes()[:900])
    with pytest.raises(CorruptModelError, match="broken.ckpt is damaged"):
        load(tmp_path / "broken.ckpt", SmallClassifier())


def test_quantize_trained_does_what_the_end_of_fit_does(fitted, tmp_path):
    at_end, _, packed = fitted
    trainer, module = trained(tmp_path)
    later = make_callback()

    class Unshuffled(SmallData):
        def calibration_dataloader(self):
            return self.val_dataloader()

    outcome = later.quantize_trained(make_trainer(tmp_path), module, Unshuffled())
    assert outcome.allocation is later.allocation
    assert set(packed_layers(module)) == set(packed_layers(packed))
    assert later.report["float"].metrics == pytest.approx(at_end.report["float"].metrics)


def test_the_task_loss_comes_from_training_step_or_loss_fn(tmp_path):
    mixed = make_callback(curvature=CurvatureOptions(estimator="hessian"), candidates=CandidateOptions(bits=(3, 4, 8)))
    trained(tmp_path, mixed)
    assert mixed.report.loss == "task"
    assert mixed.taylor.gradient.abs().max() > 0

    def loss_fn(module: nn.Module, batch: tuple) -> torch.Tensor:
        return nn.functional.cross_entropy(module(batch[0]), batch[1])

    options = {"curvature": mixed.job.pipeline.settings.curvature, "candidates": mixed.job.pipeline.settings.candidates}
    by_hand = make_callback(loss_fn=loss_fn, **options)
    trained(tmp_path, by_hand)
    torch.testing.assert_close(by_hand.taylor.curvature, mixed.taylor.curvature)


def test_a_profile_is_found_again_for_another_budget_and_not_for_other_weights(tmp_path):
    one = make_callback(4.5, cache_dir=tmp_path / "cache", compare=False)
    trained(tmp_path, one)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    two = make_callback(3.5, cache_dir=tmp_path / "cache", compare=False)
    trained(tmp_path, two)
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    assert after.items() >= kept.items()
    # What is new are layers of the other policy, each rounded after those before it.
    assert all(path.name.endswith(".rounded.safetensors") for path in after.keys() - kept.keys())
    assert two.taylor.fingerprint == one.taylor.fingerprint
    trained(tmp_path, make_callback(3.5, cache_dir=tmp_path / "cache", compare=False), max_epochs=1)
    assert len([path for path in (tmp_path / "cache").rglob("*") if path.is_file()]) > len(kept)


def test_fast_dev_run_goes_through(tmp_path):
    mixed = make_callback()
    _, module = trained(tmp_path, mixed, fast_dev_run=True)
    assert set(packed_layers(module)) == LAYERS


def test_a_time_limit_of_nothing_still_gives_a_plan_and_its_gap(tmp_path):
    mixed = make_callback(solver=SolverOptions(time_limit=0.0), compare=False)
    trained(tmp_path, mixed)
    assert mixed.allocation.costs["average_bits"] <= 4.5
    best = allocate(mixed.taylor, Budget(average_bits=4.5), gap=0.0)
    assert mixed.allocation.lower_bound <= best.value * (1 + 1e-9)


@pytest.mark.parametrize("average", [EMAWeightAveraging(), StochasticWeightAveraging(swa_lrs=0.01)])
def test_averaging_must_be_listed_first(tmp_path, average):
    with pytest.raises(ValueError, match="is listed after.*List it first"):
        trained(tmp_path, make_callback(), average)


def test_averaged_weights_are_the_ones_that_are_quantized(tmp_path):
    class Keep(L.Callback):
        def on_train_end(self, trainer, pl_module):
            self.state = state_of(pl_module)

    repair = RepairOptions(sequential=False)
    keep, mixed = Keep(), make_callback(9, candidates=CandidateOptions(bits=(8,), rounding="nearest"), repair=repair)
    _, module = trained(tmp_path, EMAWeightAveraging(decay=0.5), keep, mixed)
    weight = keep.state["network.8.weight"]
    assert (packed_layers(module)["network.8"].weight - weight).abs().max() <= weight.abs().max() / 127


def test_finetuning_begins_with_no_other_passes_than_those_that_fit_to_all_samples(tmp_path, monkeypatch):
    mixed, passes, seen = make_callback(finetune_epochs=1), [], {}
    compare, begin = Pipeline.compare, mixed.finetuning.begin

    def compared(*args, **options):
        report = compare(*args, **options)
        seen["compared"] = len(passes)
        return report

    def begun(*args):
        seen["begun"] = len(passes)
        return begin(*args)

    class Count(L.Callback):
        def setup(self, trainer, pl_module, stage):
            pl_module.network.register_forward_pre_hook(lambda module, args: passes.append(1))

    monkeypatch.setattr(Pipeline, "compare", compared)
    mixed.finetuning.begin = begun
    trained(tmp_path, Count(), mixed, max_epochs=1)
    kept, batches = mixed.report.repair[-1], 3
    in_sequence = 2 * batches + 1 if kept.rounding == "sequential" else 0  # either model, and the order of layers
    to_be_met = batches * len(set(kept.repaired) - set(kept.refused))  # by each repair, measured on the float model
    assert 0 < seen["compared"] == seen["begun"] - in_sequence - to_be_met
    assert seen["begun"] < len(passes)


def test_a_policy_for_a_target_is_one_that_it_holds_at_its_price(tmp_path):
    mixed = make_callback(5.0, target="onnxruntime", compare=False)
    _, module = trained(tmp_path, mixed)
    assert set(mixed.policy.bits().values()) <= {2, 4, 8}
    promised = promised_bytes(mixed.target, module)
    assert mixed.allocation.costs["bytes"] == pytest.approx(promised, abs=1)
    with pytest.raises(ValueError, match="target must be one of"):
        make_callback(target="tensorrt")


def test_a_policy_that_the_target_cannot_hold_is_refused_at_the_start(tmp_path):
    policy = BitPolicy({"network.0": WeightScheme(4, grid="nf4")})
    with pytest.raises(ValueError, match="does not fit the target 'onnxruntime': 'network.0' .4-bit nf4/channel."):
        trained(tmp_path, make_callback(policy=policy, target="onnxruntime"))


def test_a_budget_of_file_bytes_is_kept_by_what_is_written(tmp_path):
    mixed = make_callback(target="onnxruntime", compare=False, budget=Budget(file_bytes=9_000))
    _, module = trained(tmp_path, mixed)
    found = export_for(mixed.target, module, tmp_path / "model.onnx", SmallData().images[:4], most_bytes=9_000)
    assert found.file_bytes <= mixed.allocation.costs["file_bytes"] <= 9_000
