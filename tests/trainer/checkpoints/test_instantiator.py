"""Lightning's own load_from_checkpoint on checkpoints of packed models, for classes that know nothing of us."""

import pickle

import lightning as L
import pytest
import torch
from helpers.processes import run_python, try_new_python
from helpers.trainer import SmallClassifier, SmallData, make_trainer
from lightning.pytorch.core import saving
from omegaconf import OmegaConf
from torch import nn

import lightning_mpq as mpq
from lightning_mpq.modules import pack_model, packed_layers, policy_of

POLICY = mpq.BitPolicy({"network.4": mpq.WeightScheme(5), "network.8": mpq.WeightScheme(3, 4, "half")})
IMAGES = SmallData().images[:8]


class Sized(L.LightningModule):
    """A module with hyperparameters and a hook of its own."""

    def __init__(self, width, **more):
        super().__init__()
        self.save_hyperparameters()
        self.more = more
        self.head = nn.Linear(width, 3)

    def on_load_checkpoint(self, checkpoint):
        self.seen = packed_layers(self).keys()


class Configured(L.LightningModule):
    """A module whose hyperparameters are one argument."""

    def __init__(self, settings):
        super().__init__()
        self.save_hyperparameters(settings)
        self.head = nn.Linear(settings["width"], 3)


def written(folder, module, policy=POLICY):
    """Pack a module and let a Trainer with the callback write its checkpoint."""
    torch.manual_seed(0)
    module.eval()
    if policy is not None:
        pack_model(module, policy)
    trainer = make_trainer(folder, mpq.MixedPrecisionQuantization(4.0, policy=policy))
    trainer.strategy.connect(module)
    trainer.save_checkpoint(folder / "model.ckpt")
    return folder / "model.ckpt"


def test_a_new_process_that_imports_the_package_loads_it(tmp_path):
    module = SmallClassifier()
    path = written(tmp_path, module)
    code = """
import sys, torch, lightning_mpq
from helpers.trainer import SmallClassifier, SmallData
module = SmallClassifier.load_from_checkpoint(sys.argv[1]).eval()
torch.save(module(SmallData().images[:8]), "outputs.pt")
"""
    run_python(code, path, cwd=tmp_path)
    assert torch.equal(torch.load(tmp_path / "outputs.pt", weights_only=True), module(IMAGES))


@pytest.mark.skipif(not hasattr(saving, "_ALLOWED_INSTANTIATORS"), reason="this Lightning trusts every checkpoint")
def test_a_process_that_does_not_import_it_is_told_its_name(tmp_path):
    path = written(tmp_path, Sized(width=6), mpq.BitPolicy({"head": mpq.WeightScheme(4)}))
    code = """
import sys
import lightning as L
from torch import nn
class Sized(L.LightningModule):
    def __init__(self, width):
        super().__init__()
        self.head = nn.Linear(width, 3)
Sized.load_from_checkpoint(sys.argv[1])
"""
    message = try_new_python(code, path, cwd=tmp_path).stderr.splitlines()[-1]
    assert message.startswith("ValueError: The instantiator 'lightning_mpq.plain_loading.instantiate'")


def test_the_instance_is_of_the_class_itself_and_ordinary(tmp_path):
    path = written(tmp_path, SmallClassifier())
    module = SmallClassifier.load_from_checkpoint(path).eval()
    assert type(module) is SmallClassifier
    assert policy_of(module) == POLICY
    assert "on_load_checkpoint" not in module.__dict__
    assert torch.equal(pickle.loads(pickle.dumps(module))(IMAGES), module(IMAGES))


def test_hyperparameters_and_hooks_are_the_modules_own(tmp_path):
    policy = mpq.BitPolicy({"head": mpq.WeightScheme(4)})
    path = written(tmp_path, Sized(width=6, depth=2), policy)
    loaded = Sized.load_from_checkpoint(path, depth=3)
    assert dict(loaded.hparams) == {"width": 6, "depth": 3}
    assert loaded.more == {"depth": 3}
    assert loaded.seen == {"head"}
    shapes = r"head\.packed_codes holds a weight of shape \[3, 6\], and the layer has \[3, 9\]"
    with pytest.raises(RuntimeError, match=shapes):
        Sized.load_from_checkpoint(path, width=9)


def test_a_float_checkpoint_is_left_alone(tmp_path):
    path = written(tmp_path, Sized(width=6), policy=None)
    assert torch.load(path, weights_only=True)["hyper_parameters"] == {"width": 6}
    assert not packed_layers(Sized.load_from_checkpoint(path))


@pytest.mark.parametrize("settings", [{"width": 6}, OmegaConf.create({"width": 6})], ids=["dict", "omegaconf"])
def test_where_the_place_is_taken_our_own_function_loads_it(tmp_path, settings):
    module = Configured(settings)
    path = written(tmp_path, module, mpq.BitPolicy({"head": mpq.WeightScheme(4)}))
    hyperparameters = torch.load(path, weights_only=False)["hyper_parameters"]
    assert dict(hyperparameters) == {"width": 6}
    inputs = torch.randn(2, 6)
    loaded = mpq.load(path, Configured, weights_only=False)
    assert torch.equal(loaded.head(inputs), module.head(inputs))


def test_what_a_command_line_interface_wrote_stays(tmp_path):
    module = SmallClassifier()
    pack_model(module, POLICY)
    theirs = {"_instantiator": "lightning.pytorch.cli.instantiate_module"}
    checkpoint = {"hyper_parameters": dict(theirs)}
    mpq.MixedPrecisionQuantization(4.0).on_save_checkpoint(make_trainer(tmp_path), module, checkpoint)
    assert checkpoint == {"hyper_parameters": theirs}


def test_without_the_callbacks_state_the_message_says_why(tmp_path):
    path = written(tmp_path, SmallClassifier())
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["callbacks"]  # as with save_weights_only
    torch.save(checkpoint, path)
    with pytest.raises(mpq.CorruptModelError, match="no policy.*save_weights_only.*PackedCheckpoints"):
        SmallClassifier.load_from_checkpoint(path)
