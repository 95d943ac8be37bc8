"""Whole jobs in which weights and inputs are decided together."""

import copy
import json

import lightning as L
import pytest
import torch
from helpers.jobs import make_job
from helpers.networks import convnet, images, with_labels
from helpers.trainer import make_trainer
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from lightning_mpq import (
    Budget,
    CandidateOptions,
    InputScheme,
    MixedPrecisionQuantization,
    Report,
    SelectionOptions,
    load,
    print_report,
    save,
)
from lightning_mpq.modules import policy_of, stored_bytes
from lightning_mpq.modules.clipped_inputs import clipped_inputs
from lightning_mpq.network.calibration import Calibration
from lightning_mpq.network.held_out import hold_out

pytestmark = pytest.mark.filterwarnings("ignore:likelihood=", "ignore:More bits are predicted")


def trained(steps: int = 60) -> nn.Module:
    """A small CNN that has learned which of three blobs an image has."""
    model = convnet().train()
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for x, y in data(steps, 32):
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.eval()


def data(count: int, size: int, seed: int = 3) -> list[tuple[torch.Tensor, torch.Tensor]]:
    found = with_labels(images(*[size] * count, seed=seed), seed=seed)
    for x, y in found:
        for label in range(3):
            x[y == label, :, 2 * label : 2 * label + 2] += 1.5
    return found


def accuracy(model: nn.Module) -> float:
    x, y = data(1, 500, seed=9)[0]
    return float((model(x).argmax(1) == y).float().mean())


def test_eight_by_eight_bits_are_as_good_as_float(tmp_path, capsys):
    model = trained()
    before = accuracy(model)
    candidates = CandidateOptions(bits=(8,), inputs=(8,))
    outcome = make_job(9.0, candidates=candidates).run(model, data(8, 32), lambda: {"accuracy": accuracy(model)})
    assert {s.input_bits for s in outcome.allocation.policy.values()} == {8}
    assert policy_of(model) == outcome.allocation.policy
    assert accuracy(model) >= before - 0.006
    assert outcome.report is not None
    assert any("8-bit inputs" in row.scheme for row in outcome.report.groups)
    assert max(clipped_inputs(model, data(2, 50, seed=7)).values()) < 0.05
    held_out = hold_out(Calibration(model, data(8, 32))).judging
    assert outcome.report["chosen"].clipped == pytest.approx(clipped_inputs(model, held_out))
    assert set(outcome.report["chosen"].clipped) >= {"conv", "head"}
    again = Report.from_dict(json.loads(json.dumps(outcome.report.to_dict())))
    assert again["chosen"].clipped == outcome.report["chosen"].clipped
    print_report(again)
    assert "% of the held-out values lie beyond their ranges" in capsys.readouterr().out
    save(model, tmp_path)
    again = load(tmp_path, convnet().eval())
    x, _ = data(1, 5)[0]
    assert torch.equal(again(x), model(x))


def test_a_budget_of_operations_is_spent_on_weights_and_inputs():
    model = trained()
    candidates = CandidateOptions(bits=(2, 4, 8), inputs=(4, 6, 8))
    loose = make_job(
        Budget(bit_operations=1e12), candidates=candidates, selection=SelectionOptions(policies=1, rounds=0)
    )
    groups = loose.run(copy.deepcopy(model), data(8, 32), None)
    most = groups.allocation.costs["bit_operations"]
    tight = make_job(Budget(bit_operations=most / 3), candidates=candidates)
    outcome = tight.run(model, data(8, 32), lambda: {"accuracy": accuracy(model)})
    assert outcome.allocation.costs["bit_operations"] <= most / 3
    assert 8 * stored_bytes(model).packed >= sum(c.stored_bits for c in [
        next(c for c in outcome.taylor.candidates if (c.group, c.scheme) == (g, s))
        for g, s in outcome.allocation.policy.items()
    ])  # fmt: skip
    assert accuracy(model) > 0.8


class Module(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = convnet()

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, index):
        return cross_entropy(self(batch[0]), batch[1])

    def train_dataloader(self):
        return DataLoader(data(20, 32), batch_size=None)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 0.02)


def test_the_callback_decides_both_and_its_checkpoint_loads(tmp_path):
    candidates = CandidateOptions(bits=(4, 8), inputs=(8, InputScheme(4, symmetric=True), "float"))
    mixed = MixedPrecisionQuantization(Budget(average_bits=6.0), candidates=candidates, compare=False)
    module, trainer = Module(), make_trainer(tmp_path, mixed, max_epochs=1)
    trainer.fit(module)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    assert policy_of(module) == mixed.policy
    again = load(tmp_path / "last.ckpt", Module())
    x, _ = data(1, 5)[0]
    assert torch.equal(again.eval()(x), module.eval()(x))


def test_a_fit_goes_on_with_quantized_inputs(tmp_path):
    candidates = CandidateOptions(bits=(4,), inputs=(4,))
    mixed = MixedPrecisionQuantization(
        Budget(average_bits=6.0), candidates=candidates, compare=False, finetune_epochs=1
    )
    module = Module()
    make_trainer(tmp_path, mixed, max_epochs=1).fit(module)
    assert policy_of(module) == mixed.policy
    assert {scheme.input_bits for scheme in mixed.policy.values()} == {4}
    assert accuracy(module.eval()) > 0.6
