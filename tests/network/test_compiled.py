"""A model that ``torch.compile`` wrapped is saved and loaded as the model that it wraps."""

import lightning as L
import pytest
import torch
from torch import nn

import lightning_mpq as mpq
from lightning_mpq.modules import packed_layers


class Net(L.LightningModule):
    def __init__(self, compiled_part: bool = False) -> None:
        super().__init__()
        self.part = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
        if compiled_part:
            self.part = torch.compile(self.part, backend="eager")

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.part(inputs)


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")


def policy(*names: str) -> mpq.BitPolicy:
    return mpq.BitPolicy(dict.fromkeys(names, mpq.WeightScheme(3)))


PLAIN, WRAPPED = ("part.0", "part.2"), ("_orig_mod.part.0", "_orig_mod.part.2")


@pytest.mark.parametrize("saved_compiled", [False, True])
@pytest.mark.parametrize("loaded_compiled", [False, True])
def test_what_was_saved_loads_whether_either_is_compiled_or_not(tmp_path, saved_compiled, loaded_compiled):
    model = compiled(Net()) if saved_compiled else Net()
    mpq.quantize(model, policy(*(WRAPPED if saved_compiled else PLAIN)))
    given = compiled(Net()) if loaded_compiled else Net()
    inputs = torch.randn(5, 8)
    given(inputs)  # what is compiled has seen the float layers
    loaded = mpq.load(mpq.save(model, tmp_path / "saved"), given)
    assert loaded is given
    torch.testing.assert_close(loaded(inputs), model(inputs), rtol=0, atol=0)


def test_a_checkpoint_loads_into_a_compiled_model(tmp_path):
    model = mpq.quantize(Net(), policy(*PLAIN))
    checkpoint = {"state_dict": model.state_dict(), "lightning_mpq.policy": policy(*PLAIN).to_json()}
    torch.save(checkpoint, tmp_path / "packed.ckpt")
    inputs = torch.randn(5, 8)
    torch.testing.assert_close(mpq.load(tmp_path / "packed.ckpt", compiled(Net()))(inputs), model(inputs))


def test_other_parts_that_are_compiled_are_named_with_the_way_out(tmp_path):
    given, message = Net(compiled_part=True), r"torch.compile makes 'part._orig_mod.0' of that name"
    with pytest.raises(ValueError, match=message):
        mpq.quantize(given, policy(*PLAIN))
    folder = mpq.save(mpq.quantize(Net(), policy(*PLAIN)), tmp_path / "saved")
    with pytest.raises(mpq.CorruptModelError, match=message):
        mpq.load(folder, given)
    with pytest.raises(ValueError, match="before anything is compiled"):
        mpq.quantize(Net(), policy(*WRAPPED))
    assert not packed_layers(given)


def test_a_name_that_is_not_there_at_all_is_not_blamed_on_compilation():
    with pytest.raises(ValueError, match="Its layers") as raised:
        mpq.quantize(compiled(Net()), policy("else"))
    assert "torch.compile" not in str(raised.value)


def test_files_for_runtimes_have_the_names_of_the_model_that_was_compiled(tmp_path):
    model, inputs = compiled(mpq.quantize(Net(), policy(*PLAIN))), torch.randn(2, 8)
    mpq.export_for("torch", model, tmp_path / "saved", inputs)
    assert mpq.verify(tmp_path / "saved", model=model, example_inputs=torch.randn(3, 8)).error == 0
    assert isinstance(mpq.load(tmp_path / "saved", Net()).part[0], nn.Linear)
