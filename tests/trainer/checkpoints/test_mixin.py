"""Checkpoints of packed modules through Lightning's own load_from_checkpoint and Trainer, without the callback."""

import json
import random
from pathlib import Path

import lightning as L
import pytest
import torch
from helpers.processes import run_python
from helpers.state import state_of
from torch import nn

import lightning_mpq as mpq
from lightning_mpq.modules import pack_model, packed_layers, policy_of
from lightning_mpq.policy import BitPolicy
from lightning_mpq.schemes import WeightScheme

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


def test_load_makes_an_instance_of_a_class_without_the_mixin(tmp_path):
    net, path = written(tmp_path, PackedNet)
    again = mpq.load(path, Net)
    assert type(again) is Net
    assert again.hparams.width == 7
    assert torch.equal(again(INPUTS), net(INPUTS))
    assert type(mpq.load(path, PackedNet)) is PackedNet
    with pytest.raises(RuntimeError, match="packed_codes"):
        Net.load_from_checkpoint(path)
    with pytest.raises(TypeError, match="is packed already"):
        mpq.load(path, net)
    with pytest.raises(TypeError, match="instance|class"):
        net.load_from_checkpoint(path)


def test_a_checkpoint_without_any_policy_says_what_is_missing(tmp_path):
    _, path = written(tmp_path, Net)
    with pytest.raises(mpq.CorruptModelError, match="no policy"):
        mpq.load(path, Net)


def test_in_a_new_process_without_the_callback(tmp_path):
    net, path = written(tmp_path, PackedNet)
    code = f"""
import json, sys, warnings
sys.path.insert(0, {str(Path(__file__).parent)!r})
warnings.filterwarnings("ignore")
import lightning as L
from torch.utils.data import DataLoader, TensorDataset
from test_mixin import INPUTS, PackedNet
loaded = PackedNet.load_from_checkpoint({str(path)!r})
trainer = L.Trainer(default_root_dir={str(tmp_path)!r}, logger=False, enable_progress_bar=False)
data = DataLoader(TensorDataset(INPUTS), batch_size=3)
tested = trainer.test(PackedNet(width=7), data, ckpt_path={str(path)!r}, verbose=False)
print(json.dumps([loaded(INPUTS).tolist(), tested[0]["mean"]]))
"""
    outputs, mean = json.loads(run_python(code).splitlines()[-1])
    assert torch.equal(torch.tensor(outputs), net(INPUTS))
    assert mean == pytest.approx(float(net(INPUTS).detach().mean()), rel=1e-6)


def test_load_fills_an_instance_or_leaves_it(tmp_path):
    net, path = written(tmp_path, PackedNet)
    with torch.device("meta"):
        shell = Net(width=7)
    for model in (Net(width=7), shell):
        assert torch.equal(mpq.load(path, model)(INPUTS), net(INPUTS))
    with torch.device("meta"):
        wrong_shell = Net(width=5)
    for wrong in (Net(width=5), wrong_shell):
        before = state_of(wrong)
        with pytest.raises(mpq.CorruptModelError, match=r"(?s)does not fit Net: .*layers.0"):
            mpq.load(path, wrong)
        assert not packed_layers(wrong)
        after = wrong.state_dict()
        assert before.keys() == after.keys()
        assert all(value.is_meta or torch.equal(value, before[name]) for name, value in after.items())


class Strip(L.LightningModule):
    """A convolution whose kernel may stand or lie: the same bytes either way."""

    def __init__(self, kernel):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, kernel)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_weight_of_another_shape_with_as_many_bytes_is_refused(tmp_path, device):
    class PackedStrip(mpq.PackedCheckpoints, Strip):
        pass

    module = PackedStrip((1, 3))
    pack_model(module, BitPolicy({"conv": WeightScheme(4)}))
    trainer = L.Trainer(default_root_dir=tmp_path, logger=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "strip.ckpt")
    with torch.device(device):
        wrong, right = Strip((3, 1)), Strip((1, 3))
    with pytest.raises(mpq.CorruptModelError, match=r"conv.packed_codes holds a weight of shape \[3, 2, 1, 3\]"):
        mpq.load(tmp_path / "strip.ckpt", wrong)
    assert not packed_layers(wrong)
    assert torch.equal(mpq.load(tmp_path / "strip.ckpt", right).conv.weight, module.conv.weight)


def test_damaged_checkpoints_are_refused_or_harmless(tmp_path):
    """Cut, extended, and with changed bytes: a sentence, and the model as it was."""
    net, path = written(tmp_path, PackedNet)
    content, generator = path.read_bytes(), random.Random(0)
    damaged, refused = tmp_path / "damaged.ckpt", 0
    for number in range(200):
        place, changed = generator.randrange(len(content)), bytearray(content)
        if number % 4 == 0:
            changed = changed[:place]
        elif number % 4 == 1:
            changed[place] ^= 1 << generator.randrange(8)
        elif number % 4 == 2:
            changed[place : place + 20] = generator.randbytes(20)
        else:
            changed[place:place] = generator.randbytes(9)
        damaged.write_bytes(changed)
        model = Net(width=7)
        before = state_of(model)
        try:
            mpq.load(damaged, model)
        except mpq.CorruptModelError:
            refused += 1
            assert not packed_layers(model)
            assert model.state_dict().keys() == before.keys()
            assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        else:  # padding, names of records or what is not loaded
            assert torch.equal(model(INPUTS), net(INPUTS))
    assert refused > 100
