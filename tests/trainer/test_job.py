"""What would fail late fails at the start, or not at all."""

import lightning as L
import pytest
import torch
from helpers.streams import StreamedData
from helpers.trainer import SmallClassifier, SmallData, make_callback, make_trainer, trained
from torch import nn

from lightning_mpq import BitPolicy, WeightScheme, load, save
from lightning_mpq.modules import packed_layers

pytestmark = pytest.mark.filterwarnings("ignore")


class ReturnsDict(SmallClassifier):
    def forward(self, images):
        outputs = super().forward(images)
        return {"left": outputs, "right": outputs}

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0])["left"], batch[1])

    def validation_step(self, batch, batch_idx): ...


def test_a_trained_model_is_tried_on_its_first_batch_before_anything_is_rounded(tmp_path, monkeypatch):
    def rounds(*args, **options):
        raise AssertionError("rounded before the first batch was tried")

    monkeypatch.setattr("lightning_mpq.pipeline.profiling.round_candidates", rounds)
    with pytest.raises(TypeError, match="(?s)output.*'left'"):
        make_callback().quantize_trained(make_trainer(tmp_path), ReturnsDict(), SmallData())


def test_a_trained_model_is_given_what_its_precision_makes_of_batches(tmp_path):
    for module in (SmallClassifier(), SmallClassifier().to(torch.bfloat16)):
        trainer = make_trainer(tmp_path, precision="bf16-true")
        make_callback(compare=False).quantize_trained(trainer, module, SmallData())
        assert packed_layers(module)
        assert module.network[0].bias.dtype == torch.bfloat16


class ConfiguredLate(SmallClassifier):
    """Makes its layers where Lightning asks for them."""

    def __init__(self):
        L.LightningModule.__init__(self)
        self.network = None

    def configure_model(self):
        if self.network is None:
            ready = SmallClassifier()
            self.network, self.accuracy = ready.network, ready.accuracy


def test_layers_that_are_made_in_configure_model_are_quantized_saved_and_loaded(tmp_path):
    module = ConfiguredLate()
    make_callback(compare=False).quantize_trained(make_trainer(tmp_path), module, SmallData())
    save(module, tmp_path / "saved")
    again = load(tmp_path / "saved", ConfiguredLate())
    images = SmallData().images[:3]
    assert torch.equal(again.eval()(images), module.eval()(images))


def test_a_compiled_module_is_quantized(tmp_path):
    module = SmallClassifier()
    module.compile(backend="eager")
    make_trainer(tmp_path, make_callback(compare=False), max_epochs=1).fit(module, SmallData())  # each mode is compiled
    assert packed_layers(module)


@pytest.mark.parametrize("epochs", [0, 1])
def test_no_epochs_quantize_what_is_there(tmp_path, epochs):
    module = SmallClassifier()
    before = module.network[0].bias.detach().clone()
    mixed = make_callback(finetune_epochs=epochs, compare=False)
    trainer = make_trainer(tmp_path, mixed, max_epochs=0)
    trainer.fit(module, SmallData())
    assert packed_layers(module)
    assert trainer.global_step == 6 * epochs
    assert trainer.max_epochs == 0
    if not epochs:
        assert (module.network[0].bias - before).abs().max() < 1  # shifted by repair, not trained


def test_a_fit_without_batches_says_that_nothing_was_quantized(tmp_path):
    with pytest.warns(UserWarning, match="Nothing was quantized.*no training batches.*quantize_trained"):
        _, module = trained(tmp_path, make_callback(), limit_train_batches=0)
    assert not packed_layers(module)


def test_a_trainer_whose_epochs_are_over_says_why_nothing_was_quantized(tmp_path):
    trainer, module = trained(tmp_path, max_epochs=2)
    trainer.callbacks.append(make_callback())
    with pytest.warns(UserWarning, match=r"Nothing was quantized.*were over before \(2 epochs\).*quantize_trained"):
        trainer.fit(module, SmallData())
    assert not packed_layers(module)


def test_nothing_is_said_where_the_model_is_packed_already(tmp_path, recwarn):
    trainer, module = trained(tmp_path, make_callback(compare=False), max_epochs=1)
    trainer.fit(module, SmallData())
    assert packed_layers(module)
    assert not [each for each in recwarn if "Nothing was quantized" in str(each.message)]


def test_a_stream_is_calibrated_on_its_first_batches(tmp_path):
    mixed, module = make_callback(compare=False), SmallClassifier()
    make_trainer(tmp_path, mixed, max_epochs=1).fit(module, StreamedData())
    assert packed_layers(module)
    assert mixed.taylor.samples == 48 - 10  # a fifth judges


def test_a_stream_that_is_over_names_the_way_out(tmp_path):
    data = StreamedData()
    for _ in data.stream:
        pass
    with pytest.raises(ValueError, match="at least one calibration batch|calibration_dataloader"):
        make_callback().quantize_trained(make_trainer(tmp_path), SmallClassifier(), data)


def test_a_packed_module_is_not_trained_for_nothing(tmp_path):
    trainer, module = trained(tmp_path, make_callback(compare=False), max_epochs=1)
    again = make_trainer(tmp_path, make_callback(), max_epochs=1)
    with pytest.raises(ValueError, match="quantized already"):
        again.fit(module, SmallData())
    assert again.global_step == 0


def test_a_batch_that_a_given_policy_cannot_be_followed_on_is_refused_at_the_start(tmp_path):
    class TakesPairs(SmallClassifier):
        def forward(self, images, labels):
            return super().forward(images)

        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self(*batch), batch[1])

        def validation_step(self, batch, batch_idx): ...

    policy = BitPolicy({"network.8": WeightScheme(4, rounding="second_order")})
    trainer = make_trainer(tmp_path, make_callback(policy=policy), max_epochs=1)
    with pytest.raises(TypeError, match="forward_fn"):
        trainer.fit(TakesPairs(), SmallData())
    assert trainer.global_step == 0


class Cosine(nn.Linear):
    """Keeps forward, and has a name that packed layers need."""

    scale = 3.0

    def norm(self):
        return self.weight.norm()


class Plain(nn.Linear):
    def norm(self):
        return self.weight.norm()


@pytest.mark.parametrize(("kind", "is_packed"), [(Cosine, False), (Plain, True)])
def test_subclasses_of_layers_keep_their_methods(tmp_path, kind, is_packed):
    class Uses(SmallClassifier):
        def __init__(self):
            super().__init__()
            self.network[8] = kind(32, 3)

        def validation_step(self, batch, batch_idx):
            super().validation_step(batch, batch_idx)
            self.log("norm", self.network[8].norm())

    module, mixed = Uses(), make_callback()
    make_trainer(tmp_path, mixed, max_epochs=1).fit(module, SmallData())
    assert ("network.8" in packed_layers(module)) == is_packed
    assert isinstance(module.network[8], kind)
    assert "norm" in mixed.report["chosen"].metrics
    if not is_packed:
        assert module.network[8].scale == 3.0
        assert "'scale'" in mixed.report.left_in_float["network.8"]
