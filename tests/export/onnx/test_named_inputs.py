"""Models that are called by name, in any batch and length: what the graph's inputs are called, and which may vary."""

import pytest
import torch
from helpers.schemes import packed_in_all_ways
from torch import nn

from lightning_mpq.export.example_inputs import ExampleInputs
from lightning_mpq.export.onnx import export_onnx

onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
pytest.importorskip("onnx", reason="needs the extra onnx")
pytest.importorskip("onnxscript", reason="needs the extra onnx")
pytestmark = pytest.mark.filterwarnings("ignore")


class ByName(nn.Module):
    """Takes tokens and a mask by name, in any number."""

    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(12, 16), nn.Linear(16, 3)

    def forward(self, input_ids, attention_mask, bias=None):
        hidden = self.head(torch.relu(self.table(input_ids))) * attention_mask.unsqueeze(-1)
        return {"logits": hidden, "pooled": hidden.sum(1) if bias is None else hidden.sum(1) + bias}


@pytest.fixture
def by_name():
    torch.manual_seed(0)
    ids = torch.randint(0, 12, (2, 6))
    return packed_in_all_ways(ByName()).eval(), {"input_ids": ids, "attention_mask": (ids > 3).long()}


def test_a_mapping_is_called_by_name_in_any_batch_and_length(by_name, tmp_path):
    model, inputs = by_name
    result = export_onnx(model, tmp_path / "m.onnx", inputs)
    session = onnxruntime.InferenceSession(str(result.path))
    assert [(entry.name, entry.shape) for entry in session.get_inputs()] == [
        ("input_ids", ["batch", "length"]), ("attention_mask", ["batch", "length"])]  # fmt: skip
    ids = torch.randint(0, 12, (1, 31))
    found = session.run(None, {"input_ids": ids.numpy(), "attention_mask": torch.ones_like(ids).numpy()})
    for own, other in zip(found, model(ids, torch.ones_like(ids)).values(), strict=True):
        torch.testing.assert_close(torch.as_tensor(own), other, rtol=0.05, atol=0.05)
    fixed = export_onnx(model, tmp_path / "fixed.onnx", inputs, dynamic_length=False)
    shapes = [entry.shape for entry in onnxruntime.InferenceSession(str(fixed.path)).get_inputs()]
    assert shapes == [["batch", 6], ["batch", 6]]


def test_a_mask_in_float_has_as_many_columns_as_there_are_tokens(by_name, tmp_path):
    model, inputs = by_name
    wide = {**inputs, "attention_mask": inputs["attention_mask"].float(), "bias": torch.ones(2, 3)}
    session = onnxruntime.InferenceSession(str(export_onnx(model, tmp_path / "m.onnx", wide).path))
    shapes = {entry.name: entry.shape for entry in session.get_inputs()}
    assert shapes == {"input_ids": ["batch", "length"], "attention_mask": ["batch", "length"], "bias": ["batch", 3]}


def test_lengths_that_cannot_be_tried_are_refused(by_name, tmp_path):
    model, inputs = by_name
    short = {name: value[:, :2] for name, value in inputs.items()}
    with pytest.raises(ValueError, match="needs example inputs of at least 3 tokens.*got 2.*dynamic_length=False"):
        export_onnx(model, tmp_path / "m.onnx", short)
    with pytest.raises(ValueError, match="pass dynamic_batch=True with it"):
        export_onnx(model, tmp_path / "m.onnx", inputs, dynamic_batch=False, dynamic_length=True)
    model.head.register_forward_hook(lambda layer, args, output: output.view(-1, 6, 3))
    with pytest.raises(ValueError, match="takes the 2 samples of example_inputs and not 3 of 5 tokens.*dynamic_length"):
        export_onnx(model, tmp_path / "m.onnx", inputs)


class Open(nn.Module):
    """Takes whatever its part does, as wrappers of a network do."""

    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, *args, **kwargs):
        return self.part(*args, **kwargs)


@pytest.mark.parametrize("place", [0, 1, 2], ids=["all by name", "one by place", "all by place"])
def test_a_forward_of_any_arguments_has_a_dynamic_batch_too(place, by_name, tmp_path):
    model, inputs = by_name
    names = [f"input_{n}" if n < place else name for n, name in enumerate(inputs)]
    given = ExampleInputs(tuple(inputs.values())[:place], dict(list(inputs.items())[place:]))
    wrapped = Open(model)
    session = onnxruntime.InferenceSession(str(export_onnx(wrapped, tmp_path / "m.onnx", given).path))
    assert [entry.name for entry in session.get_inputs()] == names
    assert "forward" not in wrapped.__dict__
    ids = torch.randint(0, 12, (5, 6))
    found = session.run(None, {name: value.numpy() for name, value in zip(names, (ids, ids), strict=True)})
    torch.testing.assert_close(torch.as_tensor(found[0]), model(ids, ids)["logits"], rtol=0.05, atol=0.05)
