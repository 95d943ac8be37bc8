"""What `load` says and does where a checkpoint is none, or the model makes its layers later."""

import lightning as L
import pytest
import torch
from torch import nn

import lightning_mpq as mpq


class Late(L.LightningModule):
    """Makes its layers where Lightning says that large models should."""

    def __init__(self):
        super().__init__()
        self.layer = None

    def configure_model(self):
        if self.layer is None:
            self.layer = nn.Linear(4, 4)


class Partly(Late):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(2, 2)


@pytest.fixture
def saved(tmp_path):
    model = Late()
    model.configure_model()
    return mpq.save(mpq.quantize(model, mpq.BitPolicy({"layer": mpq.WeightScheme(3)})), tmp_path / "saved")


def test_layers_that_are_made_in_configure_model_are_made_before_loading(saved):
    assert torch.equal(mpq.load(saved, Late()).layer.scale, mpq.load(saved, Late()).layer.scale)


def test_and_so_are_those_that_are_made_beside_others(tmp_path):
    model = Partly()
    model.configure_model()
    policy = mpq.BitPolicy(dict.fromkeys(("first", "layer"), mpq.WeightScheme(3)))
    folder = mpq.save(mpq.quantize(model, policy), tmp_path / "saved")
    assert torch.equal(mpq.load(folder, Partly()).layer.weight, model.layer.weight)


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04", b"\x80\x02]q\x00.", bytes(1000)])
@pytest.mark.parametrize("given", [Late, Partly()])
def test_a_file_that_is_no_checkpoint_is_one_kind_of_error(tmp_path, content, given):
    path = tmp_path / "x.ckpt"
    path.write_bytes(content)
    with pytest.raises(mpq.CorruptModelError, match="x.ckpt"):
        mpq.load(path, given)


def test_wrong_arguments_of_a_class_stay_a_type_error(tmp_path):
    class Wanting(L.LightningModule):
        def __init__(self, width):
            super().__init__()
            self.layer = nn.Linear(width, width)

    trainer = L.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    trainer.strategy.connect(Wanting(2))
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    with pytest.raises(TypeError, match="width"):
        mpq.load(tmp_path / "x.ckpt", Wanting)


class Small(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)


@pytest.mark.parametrize("wrapped", [lambda state: state, lambda state: {"model": state, "epoch": 3}])
@pytest.mark.parametrize("given", [Small, Small()])
def test_a_state_dict_alone_is_told_from_a_float_model(tmp_path, wrapped, given):
    model = mpq.quantize(Small(), mpq.BitPolicy({"layer": mpq.WeightScheme(3)}))
    torch.save(wrapped(model.state_dict()), tmp_path / "x.pt")
    with pytest.raises(mpq.CorruptModelError, match=r"state dict of a packed model alone, .*lightning_mpq\.save"):
        mpq.load(tmp_path / "x.pt", given)


@pytest.mark.parametrize("given", [Small, Small()])
def test_a_float_state_dict_is_named_as_one(tmp_path, given):
    torch.save(Small().state_dict(), tmp_path / "x.pt")
    with pytest.raises(mpq.CorruptModelError, match=r"x\.pt holds a float model, or none"):
        mpq.load(tmp_path / "x.pt", given)
