"""Fine-tuning within a fit: who acts when, what stays the same objects, and that packing changes no output."""

from dataclasses import replace

import lightning as L
import pytest
import torch
from helpers.finetuning import FEW, LAYERS, Recorder, finetuning, fit, kind_of
from helpers.state import same, state_of
from helpers.trainer import SmallClassifier, SmallData, make_trainer, trained
from lightning.pytorch.callbacks import EarlyStopping, Timer

from lightning_mpq.groups.groups import find_groups
from lightning_mpq.modules import packed_layers, policy_of
from lightning_mpq.options import FinetuneOptions
from lightning_mpq.pipeline.pipeline import Pipeline
from lightning_mpq.pipeline.quantizer import Quantizer
from lightning_mpq.policy import BitPolicy
from lightning_mpq.schemes import WeightScheme

pytestmark = pytest.mark.filterwarnings("ignore")


def test_float_epochs_then_a_decision_then_finetuned_epochs_then_pack(tmp_path, monkeypatch):
    recorder, mixed = Recorder(), finetuning()
    decide = Pipeline.decide
    monkeypatch.setattr(Pipeline, "decide", lambda *args: recorder.seen.append("decide") or decide(*args))
    pack = mixed.finetuning.pack
    mixed.finetuning.pack = lambda *args: recorder.seen.append("pack") or pack(*args)
    trainer, module = trained(tmp_path, mixed, recorder)
    expected = [(hook, epoch, "float") for epoch in (0, 1) for hook in ("start", "end")]
    expected += ["decide", *((hook, epoch, "fake") for epoch in (2, 3) for hook in ("start", "end"))]
    assert recorder.seen == [*expected, "pack", ("over", 4, "packed")]
    assert set(packed_layers(module)) == LAYERS
    assert policy_of(module) == mixed.policy
    assert trainer.max_epochs == 2
    assert trainer.fit_loop.min_epochs in (0, None)


def test_parameters_keys_and_float_epochs_stay_and_packing_changes_no_output(tmp_path):
    class Watch(L.Callback):
        def __init__(self):
            self.parameters, self.keys, self.float_state = [], [], None

        def on_train_epoch_end(self, trainer, pl_module):
            self.parameters.append([id(parameter) for parameter in pl_module.parameters()])
            self.keys.append(list(pl_module.state_dict()))
            if trainer.current_epoch == 1:
                self.float_state = state_of(pl_module)

        def on_train_end(self, trainer, pl_module):
            images = trainer.datamodule.images
            with torch.no_grad():
                self.outputs = pl_module.eval()(images)
                self.weights = {name: pl_module.get_submodule(name).weight.clone() for name in LAYERS}

    watch, mixed = Watch(), finetuning()
    _, module = trained(tmp_path, watch, mixed)
    assert len(watch.keys) == 4
    assert all(keys == watch.keys[0] for keys in watch.keys)
    assert all(parameters == watch.parameters[0] for parameters in watch.parameters)
    assert same(watch.float_state, trained(tmp_path)[1].state_dict())
    assert all(torch.equal(layer.weight, watch.weights[name]) for name, layer in packed_layers(module).items())
    with torch.no_grad():
        assert torch.equal(module.eval()(SmallData().images), watch.outputs)


def test_fine_tuning_starts_from_the_codes_of_plain_quantization(tmp_path):
    """Those of error feedback, not the nearest ones: steps of no length leave what is packed without fine-tuning."""

    def codes(**options):
        packed = packed_layers(trained(tmp_path, finetuning(3.0, **options))[1])
        return {name: layer.quantized_rows().codes for name, layer in packed.items()}

    fed_back = replace(FEW, rounding="second_order")
    still = codes(finetune=FinetuneOptions(learning_rate=1e-12), candidates=fed_back)
    assert same(still, codes(finetune_epochs=0, candidates=fed_back))
    nearest = codes(finetune_epochs=0)
    assert not same(still, nearest)


def test_finetuning_lowers_the_loss_that_rounding_raised(tmp_path):
    candidates, options = replace(FEW, rounding="second_order"), FinetuneOptions(learning_rate=0.5)
    mixed = finetuning(3.0, compare=True, finetune_epochs=6, finetune=options, candidates=candidates)
    trained(tmp_path, mixed, max_epochs=4)
    names = [row.name for row in mixed.report.models]
    assert names[0] == "float"
    assert names[-2:] == ["chosen", "fine-tuned"]
    chosen, finetuned = mixed.report.models[-2:]
    assert finetuned.stored_bytes == chosen.stored_bytes
    assert finetuned.average_bits == pytest.approx(chosen.average_bits)
    assert finetuned.metrics["val_loss"] < chosen.metrics["val_loss"]
    again = make_trainer(tmp_path).validate(SmallClassifier(), SmallData(), verbose=False)[0]
    assert set(finetuned.metrics) == set(again)


@pytest.mark.parametrize(
    ("arguments", "settings", "kinds"),
    [
        ({"finetune_epochs": 1, "quantize_at": 1}, {"max_epochs": 4}, ["float", "fake"]),
        ({"finetune_epochs": 0, "quantize_at": 1}, {"max_epochs": 3}, ["float", "fake", "fake"]),
        ({"finetune_epochs": 2, "quantize_at": 0}, {"max_epochs": 4}, ["fake", "fake"]),
        ({"finetune_epochs": 0, "finetune_steps": 8}, {"max_epochs": 1}, ["float", "fake", "fake"]),
        ({"finetune_epochs": 1}, {"max_steps": 8, "max_epochs": -1}, ["float", "float", "fake"]),
        ({"finetune_epochs": 3}, {"fast_dev_run": True}, ["float", "fake"]),
        ({"finetune_epochs": 2}, {"max_epochs": 1, "limit_train_batches": 2}, ["float", "fake", "fake"]),
        ({"finetune_epochs": 1}, {"max_epochs": 2, "check_val_every_n_epoch": 2}, ["float", "float", "fake"]),
    ],
)
def test_when_the_phases_change(tmp_path, arguments, settings, kinds):
    recorder, mixed = Recorder(), finetuning(**arguments)
    trainer, module = trained(tmp_path, recorder, mixed, **settings)
    assert recorder.epochs() == kinds
    assert kind_of(module) == "packed"
    if "finetune_steps" in arguments:
        assert trainer.global_step == 6 + 8


def test_a_float_phase_that_stops_early_is_followed_by_finetuning(tmp_path):
    recorder = Recorder()
    stopping = EarlyStopping("val_loss", patience=1, min_delta=100.0)
    trainer, module = trained(tmp_path, stopping, recorder, finetuning(), max_epochs=9)
    assert recorder.epochs() == ["float", "float", "fake", "fake"]
    assert kind_of(module) == "packed"
    recorder = Recorder()
    stopping = EarlyStopping("val_loss", patience=1, min_delta=100.0)
    trained(tmp_path, stopping, recorder, finetuning(finetune_epochs=5), max_epochs=9, min_epochs=3)
    assert recorder.epochs() == ["float", "float", "float", "fake", "fake"]  # which stops early as well


def test_no_time_left_means_no_finetuning_and_a_sentence(tmp_path):
    class Hurry(Timer):
        def time_remaining(self, stage="train"):
            return -1.0 if self.over else 100.0

        def on_train_epoch_end(self, trainer, pl_module):
            self.over = trainer.current_epoch == 1
            trainer.should_stop = self.over

    for order in (0, 1):
        hurry, recorder, mixed = Hurry(duration={"hours": 1}), Recorder(), finetuning()
        hurry.over = False
        with pytest.warns(UserWarning, match="max_time"):
            _, module = trained(tmp_path, *[hurry, mixed][:: 1 if order else -1], recorder, max_epochs=5)
        assert set(recorder.epochs()[:2]) == {"float"}
        assert kind_of(module) == "packed"


def test_a_saved_policy_is_followed_without_profiling(tmp_path, monkeypatch):
    first = finetuning(finetune_epochs=0)
    trained(tmp_path, first)
    (tmp_path / "policy.json").write_text(first.policy.to_json())
    monkeypatch.setattr(Pipeline, "decide", None)
    monkeypatch.setattr(Pipeline, "run", None)
    for epochs in (0, 1):
        mixed = finetuning(policy=tmp_path / "policy.json", finetune_epochs=epochs)
        _, module = trained(tmp_path, mixed)
        assert policy_of(module) == first.policy == mixed.policy
        assert mixed.taylor is None
    with pytest.raises(FileNotFoundError, match=r"nowhere.json"):
        finetuning(policy=tmp_path / "nowhere.json")


def test_a_checkpoint_that_was_trained_to_its_end_is_finetuned(tmp_path):
    fit(tmp_path / "plain")
    recorder, mixed = Recorder(), finetuning()
    _, module = fit(tmp_path / "later", recorder, mixed, resume=tmp_path / "plain" / "last.ckpt")
    assert recorder.epochs() == ["fake", "fake"]
    assert kind_of(module) == "packed"
    later = finetuning(finetune_epochs=0)
    _, module = fit(tmp_path / "packed", later, resume=tmp_path / "plain" / "last.ckpt")
    assert kind_of(module) == "packed"


@pytest.mark.parametrize("epochs", [0, 1])
def test_a_given_policy_is_rounded_for_the_statistics_that_stay(tmp_path, monkeypatch, epochs):
    """With fine-tuning and without it, held-out samples are asked before any layer is rounded in sequence."""
    scheme = WeightScheme(3, rounding="second_order")
    policy = BitPolicy({group.name: scheme for group in find_groups(SmallClassifier())})
    (tmp_path / "policy.json").write_text(policy.to_json())
    monkeypatch.setattr(Quantizer, "statistics_do_harm", lambda *_: True)
    rounded_for = []

    def codes(self, *arguments):
        rounded_for.append(self.options.batchnorm)
        return real(self, *arguments)

    real = Quantizer.codes
    monkeypatch.setattr(Quantizer, "codes", codes)
    trained(tmp_path, finetuning(policy=tmp_path / "policy.json", finetune_epochs=epochs))
    assert rounded_for
    assert not any(rounded_for)
