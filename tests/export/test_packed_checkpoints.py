"""Checkpoints of packed modules through Lightning's own load_from_checkpoint and Trainer, without the callback."""

import json
import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest
import torch
from torch import nn

import lightning_mpq as mpq
from lightning_mpq.modules import pack_model, packed_layers, policy_of
from lightning_mpq.policy import BitPolicy, WeightScheme

POLICY = BitPolicy({"layers.0": WeightScheme(3, 4, "half"), "layers.2": WeightScheme(5, grid="asymmetric")})
INPUTS = torch.linspace(-1, 1, 24).view(3, 8)


class Net(L.LightningModule):
    """A LightningModule with an argument, and hooks of its own that must still run."""

    def __init__(self, width=6):
        super().__init__()
        self.save_hyperparameters()
        self.layers = nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 2))
        self.seen = []

    def forward(self, inputs):
        return self.layers(inputs)

    def on_load_checkpoint(self, checkpoint):
        self.seen.append("load")

    def test_step(self, batch, batch_idx):
        self.log("mean", self(batch[0]).mean())


class PackedNet(mpq.PackedCheckpoints, Net):
    """The same with the mixin."""


def written(folder, kind, packed=True):
    """Train nothing, pack, and let a Trainer without our callback write a checkpoint."""
    torch.manual_seed(0)
    net = kind(width=7)
    if packed:
        pack_model(net, POLICY)
    trainer = L.Trainer(default_root_dir=folder, logger=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.strategy.connect(net)
    path = folder / f"{kind.__name__}-{packed}.ckpt"
    trainer.save_checkpoint(path)
    return net, path


def test_load_from_checkpoint_takes_packed_and_float_ones(tmp_path):
    for packed in (True, False):
        net, path = written(tmp_path, PackedNet, packed)
        again = PackedNet.load_from_checkpoint(path)
        assert again.hparams.width == 7
        assert again.seen == ["load"]
        assert bool(packed_layers(again)) == packed
        assert policy_of(again) == (POLICY if packed else BitPolicy({}))
        assert torch.equal(again(INPUTS), net(INPUTS))


def test_a_class_without_the_mixin_is_loaded_by_our_function(tmp_path):
    net, path = written(tmp_path, PackedNet)
    again = mpq.load_from_checkpoint(Net, path)
    assert type(again) is Net
    assert again.hparams.width == 7
    assert torch.equal(again(INPUTS), net(INPUTS))
    assert type(mpq.load_from_checkpoint(PackedNet, path)) is PackedNet
    with pytest.raises(RuntimeError, match="packed_codes"):
        Net.load_from_checkpoint(path)
    with pytest.raises(TypeError, match="load_checkpoint"):
        mpq.load_from_checkpoint(net, path)


def test_a_checkpoint_without_any_policy_says_what_is_missing(tmp_path):
    _, path = written(tmp_path, Net)
    with pytest.raises(mpq.CorruptModelError, match="no policy"):
        mpq.load_from_checkpoint(Net, path)


def test_in_a_new_process_without_the_callback(tmp_path):
    net, path = written(tmp_path, PackedNet)
    code = f"""
import json, sys, warnings
warnings.filterwarnings("ignore")
sys.path.insert(0, {str(Path(__file__).parent)!r})
import lightning as L
from torch.utils.data import DataLoader, TensorDataset
from test_packed_checkpoints import INPUTS, PackedNet
loaded = PackedNet.load_from_checkpoint({str(path)!r})
trainer = L.Trainer(default_root_dir={str(tmp_path)!r}, logger=False, enable_progress_bar=False)
data = DataLoader(TensorDataset(INPUTS), batch_size=3)
tested = trainer.test(PackedNet(width=7), data, ckpt_path={str(path)!r}, verbose=False)
print(json.dumps([loaded(INPUTS).tolist(), tested[0]["mean"]]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    outputs, mean = json.loads(done.stdout.splitlines()[-1])
    assert torch.equal(torch.tensor(outputs), net(INPUTS))
    assert mean == pytest.approx(float(net(INPUTS).detach().mean()), rel=1e-6)


def test_load_checkpoint_fills_an_instance_or_leaves_it(tmp_path):
    net, path = written(tmp_path, PackedNet)
    with torch.device("meta"):
        shell = Net(width=7)
    for model in (Net(width=7), shell):
        assert torch.equal(mpq.load_checkpoint(path, model)(INPUTS), net(INPUTS))
    with torch.device("meta"):
        wrong_shell = Net(width=5)
    for wrong in (Net(width=5), wrong_shell):
        before = {name: value.clone() for name, value in wrong.state_dict().items()}
        with pytest.raises(mpq.CorruptModelError, match=r"(?s)does not fit Net: .*layers.0"):
            mpq.load_checkpoint(path, wrong)
        assert not packed_layers(wrong)
        after = wrong.state_dict()
        assert before.keys() == after.keys()
        assert all(value.is_meta or torch.equal(value, before[name]) for name, value in after.items())
