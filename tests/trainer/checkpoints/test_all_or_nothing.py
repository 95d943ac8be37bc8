"""Checkpoints that do not fit, through Lightning's own doors: the module is left as it was, and a sentence says so."""

import copy

import pytest
import torch
from helpers.finetuning import finetuning, fit, kind_of
from helpers.state import same, state_of
from helpers.trainer import SmallClassifier, SmallData, make_callback, make_trainer
from lightning.pytorch.callbacks import ModelCheckpoint

import lightning_mpq as mpq
from lightning_mpq.errors import CorruptModelError
from lightning_mpq.modules import packed_layers

pytestmark = pytest.mark.filterwarnings("ignore")


class WithPredictions(SmallClassifier):
    def predict_step(self, batch, batch_idx):
        return self(batch[0])


class WithMixin(mpq.PackedCheckpoints, WithPredictions): ...


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    """A fit that ended with a packed model, its best float checkpoint and its packed one."""
    folder = tmp_path_factory.mktemp("quantized")
    best = ModelCheckpoint(folder, monitor="val_loss", filename="best")
    mixed = make_callback(compare=False)
    trainer = make_trainer(folder, mixed, best, enable_checkpointing=True, max_epochs=1)
    module = WithPredictions()
    trainer.fit(module, SmallData())
    trainer.save_checkpoint(folder / "packed.ckpt")
    return trainer, module, folder


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory):
    """The checkpoint of an epoch of fine-tuning."""
    folder = tmp_path_factory.mktemp("finetuned")
    fit(folder, finetuning(), max_epochs=1)
    return folder / "epoch=1.ckpt"


@pytest.mark.parametrize("verb", ["test", "validate", "predict"])
def test_the_best_float_checkpoint_is_refused_by_the_packed_module(quantized, verb):
    trainer, module, _ = quantized
    before = state_of(module)
    with pytest.raises(ValueError, match=r"WithPredictions is packed.*trainer.test\(WithPredictions"):
        getattr(trainer, verb)(datamodule=data_for(verb), ckpt_path="best")
    assert same(module.state_dict(), before)
    assert packed_layers(module)


def data_for(verb):
    data = SmallData()
    data.predict_dataloader = data.val_dataloader
    return data


def test_without_the_callback_it_is_refused_too(quantized, tmp_path):
    trainer, module, folder = quantized
    before = state_of(module)
    for strict in (True, False):
        module.strict_loading = strict
        with pytest.raises(RuntimeError, match="Nothing was loaded"):
            make_trainer(tmp_path).test(module, SmallData(), ckpt_path=folder / "best.ckpt")
    module.strict_loading = True
    assert same(module.state_dict(), before)


def test_a_new_instance_tests_the_float_checkpoint_and_the_packed_one(quantized, tmp_path):
    _, module, folder = quantized
    for name, kind in (("best", "float"), ("packed", "packed")):
        new = WithPredictions()
        make_trainer(tmp_path, make_callback()).test(new, SmallData(), ckpt_path=folder / f"{name}.ckpt")
        assert kind_of(new) == kind
    assert same(new.state_dict(), module.state_dict())


def test_fitting_goes_on_from_no_packed_module(quantized, tmp_path):
    _, module, folder = quantized
    before = state_of(module)
    with pytest.raises(ValueError, match="is packed"):
        make_trainer(tmp_path, make_callback()).fit(module, SmallData(), ckpt_path=folder / "best.ckpt")
    assert same(module.state_dict(), before)


def without_a_tensor(checkpoint):
    del checkpoint["state_dict"]["network.8.scale"]


def of_another_shape(checkpoint):
    checkpoint["state_dict"]["network.8.bias"] = torch.zeros(4)


def with_another_policy(checkpoint):
    [state] = [value for name, value in checkpoint["callbacks"].items() if name.startswith("MixedPrecision")]
    state["policy"] = state["policy"].replace("network.8", "network.9")


def with_a_tensor_for_a_policy(checkpoint):
    [name] = [name for name in checkpoint["callbacks"] if name.startswith("MixedPrecision")]
    checkpoint["callbacks"][name] = torch.zeros(1)


DAMAGES = [without_a_tensor, of_another_shape, with_another_policy, with_a_tensor_for_a_policy]


def load(path, module, by, mixed):
    if by == "load":
        mpq.load(path, module)
    else:
        getattr(make_trainer(path.parent, mixed), by)(module, SmallData(), ckpt_path=path)


@pytest.mark.parametrize("change", DAMAGES)
@pytest.mark.parametrize("by", ["test", "load"])
def test_a_damaged_packed_checkpoint_leaves_the_float_module(quantized, tmp_path, change, by):
    checkpoint = torch.load(quantized[2] / "packed.ckpt", weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, tmp_path / "bad.ckpt")
    module = WithPredictions()
    before, layers = state_of(module), dict(module.named_modules())
    with pytest.raises(CorruptModelError):
        load(tmp_path / "bad.ckpt", module, by, make_callback())
    assert same(module.state_dict(), before)
    assert dict(module.named_modules()) == layers


def test_the_mixin_leaves_the_float_module_too(quantized, tmp_path):
    checkpoint = torch.load(quantized[2] / "packed.ckpt", weights_only=True)
    checkpoint["state_dict"]["network.8.bias"] = torch.zeros(4)
    torch.save(checkpoint, tmp_path / "bad.ckpt")
    module = WithMixin()
    before = state_of(module)
    with pytest.raises(CorruptModelError, match="does not fit WithMixin, which is left as it was"):
        make_trainer(tmp_path).test(module, SmallData(), ckpt_path=tmp_path / "bad.ckpt")
    assert same(module.state_dict(), before)


def test_a_byte_that_is_wrong_is_seen_before_anything_is_loaded(quantized, tmp_path):
    content = bytearray((quantized[2] / "packed.ckpt").read_bytes())
    packed = torch.load(quantized[2] / "packed.ckpt", weights_only=True)["state_dict"]["network.8.packed_codes"]
    content[content.index(packed.numpy().tobytes()) + 3] ^= 1
    (tmp_path / "bad.ckpt").write_bytes(content)
    module = WithPredictions()
    before = state_of(module)
    with pytest.raises(CorruptModelError, match="is damaged"):
        make_trainer(tmp_path, make_callback()).test(module, SmallData(), ckpt_path=tmp_path / "bad.ckpt")
    assert same(module.state_dict(), before)


def spoiled(part):
    def change(checkpoint):
        [state] = [value for name, value in checkpoint["callbacks"].items() if name.startswith("MixedPrecision")]
        quantized = state["finetuning"]["quantized"]
        if part == "one quantizer":
            quantized["quantizers"][list(quantized["quantizers"])[-1]] = torch.zeros(3, 5)
        elif part == "all scales":
            state["finetuning"]["quantized"] = torch.zeros(0)
        else:
            quantized["quantizers"]["network.8"]["relative_scale"] = torch.zeros(1, 1)[:0]

    return change


@pytest.mark.parametrize("part", ["one quantizer", "all scales", "a scale of no length"])
@pytest.mark.parametrize("by", ["test", "fit", "load"])
def test_a_damaged_checkpoint_of_finetuning_leaves_the_float_module(finetuned, tmp_path, part, by):
    checkpoint = copy.deepcopy(torch.load(finetuned, weights_only=True))
    spoiled(part)(checkpoint)
    torch.save(checkpoint, tmp_path / "bad.ckpt")
    module = SmallClassifier()
    before = state_of(module)
    with pytest.raises(CorruptModelError):
        load(tmp_path / "bad.ckpt", module, by, finetuning())
    assert same(module.state_dict(), before)
    assert kind_of(module) == "float"


def test_a_sound_checkpoint_of_finetuning_is_tested_packed(finetuned, tmp_path):
    module = SmallClassifier()
    make_trainer(tmp_path, finetuning()).test(module, SmallData(), ckpt_path=finetuned)
    assert kind_of(module) == "packed"
    assert same(module.state_dict(), mpq.load(finetuned, SmallClassifier()).state_dict())


def test_the_users_own_hook_may_still_rename_what_is_loaded(quantized, tmp_path):
    class Renames(SmallClassifier):
        def on_load_checkpoint(self, checkpoint):
            checkpoint["state_dict"] = {
                name.removeprefix("old."): value for name, value in checkpoint["state_dict"].items()
            }

    checkpoint = torch.load(quantized[2] / "packed.ckpt", weights_only=True)
    checkpoint["state_dict"] = {f"old.{name}": value for name, value in checkpoint["state_dict"].items()}
    torch.save(checkpoint, tmp_path / "old.ckpt")
    module = Renames()
    make_trainer(tmp_path, make_callback()).test(module, SmallData(), ckpt_path=tmp_path / "old.ckpt")
    assert same(module.state_dict(), quantized[1].state_dict())
