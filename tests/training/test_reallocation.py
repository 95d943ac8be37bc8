"""Bits that move while a model is fine-tuned: whether it pays is measured, and a resumed fit moves the same ones."""

from dataclasses import replace
from io import StringIO

import lightning as L
import pytest
import torch
from finetune_cases import FEW, Kill, Killed, finetuning, fit, same
from rich.console import Console
from trainer_cases import SmallClassifier, make_trainer

from lightning_mpq import BitPolicy
from lightning_mpq.finetune import fake_quantize
from lightning_mpq.finetune.plan_change import change_plan
from lightning_mpq.options import FinetuneOptions
from lightning_mpq.pipeline.pipeline import Pipeline
from lightning_mpq.policy import WeightScheme
from lightning_mpq.quantizers import quantize_rows
from lightning_mpq.report import Report, print_report

pytestmark = pytest.mark.filterwarnings("ignore")
FOUR, EIGHT = WeightScheme(bits=4), WeightScheme(bits=8)


class WrongAtFirst(L.Callback):
    """Lets the first plan be one that gives the bits to the wrong layers."""

    def setup(self, trainer, pl_module, stage):
        self.plan = Pipeline.plan
        calls = []

        def plan(pipeline, model, batches):
            found = self.plan(pipeline, model, batches)
            calls.append(found)
            if trainer.current_epoch > 2 or len(calls) > 1:
                return found
            policy = found.allocation.policy
            bits = {group: 2 if group == "network.8" else 4 for group in policy}
            schemes = {c.group: c.scheme for c in found.taylor.candidates if c.scheme.bits == bits[c.group]}
            wrong = BitPolicy(schemes, policy.layers)
            return replace(found, allocation=found.allocation.with_policy(wrong))

        Pipeline.plan = plan

    def teardown(self, trainer, pl_module, stage):
        Pipeline.plan = self.plan

    def on_exception(self, trainer, pl_module, exception):
        Pipeline.plan = self.plan


def moving(**settings):
    return finetuning(finetune=FinetuneOptions(epochs=3, reallocate_every=1, **settings), finetune_epochs=3)


def test_layers_of_one_plan_move_to_another_in_place_and_back():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 3))
    inputs, parameters = torch.randn(8, 6), list(net.parameters())
    handle = fake_quantize(net, BitPolicy({"0": FOUR, "2": FOUR}))
    with torch.no_grad():
        for scale in handle.parameters():
            scale.mul_(1.1)
        net[0].bias.add_(0.5)
    net.eval()
    before, latent, scales = net(inputs), net.state_dict()["2.weight"].clone(), handle.quantizers["0"].scale()
    codes = {"2": quantize_rows(latent, EIGHT)}
    replaced, undo = change_plan(handle, BitPolicy({"0": FOUR, "2": EIGHT}), codes)
    assert [id(p) for p in net.parameters()] == [id(p) for p in parameters]
    assert torch.equal(handle.quantizers["0"].scale(), scales)
    assert torch.equal(net[2].weight, codes["2"].dequantize())
    assert list(replaced.values()) == [handle.quantizers["2"].relative_scale]
    undo()
    assert torch.equal(net(inputs), before)
    assert torch.equal(net.state_dict()["2.weight"], latent)
    assert handle.policy["2"] == FOUR
    assert handle.quantizers["2"].relative_scale in replaced
    with pytest.raises(ValueError, match="'2'"):
        change_plan(handle, BitPolicy({"0": EIGHT}), {})
    assert torch.equal(net(inputs), before)


@pytest.mark.parametrize("settings", [{}, {"distill": 1.0, "damping": 0.01}, {"freeze_oscillations": 0.005}])
def test_a_wrong_plan_is_left_and_a_resumed_fit_ends_as_the_uninterrupted_one(tmp_path, settings):
    whole = moving(**settings)
    _, module = fit(tmp_path / "whole", WrongAtFirst(), whole)
    rows = whole.finetuning.reallocations
    assert [row.epoch for row in rows] == [3, 4]
    assert rows[0].moved
    assert rows[0].kept
    assert rows[0].loss_after <= rows[0].loss_before
    assert all(whole.policy[group].bits == bits[1] for group, bits in rows[0].moved.items()) or rows[1].kept
    for hook in ("on_train_batch_start", "on_train_end"):
        folder = tmp_path / hook
        with pytest.raises(Killed):
            fit(folder, WrongAtFirst(), Kill(hook, 4 if hook == "on_train_batch_start" else None), moving(**settings))
        again = moving(**settings)
        _, resumed = fit(folder, again, resume=folder / "last.ckpt")
        assert again.finetuning.reallocations == rows
        assert again.policy == whole.policy
        assert same(resumed.state_dict(), module.state_dict())


def test_a_move_that_does_worse_is_taken_back_and_told(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "lightning_mpq.trainer.finetuning.reallocation.LossChange.measure", lambda change, first=None: 1.0
    )
    mixed = finetuning(
        finetune=FinetuneOptions(epochs=2, reallocate_every=1), finetune_epochs=2, verdict=True, candidates=FEW
    )
    fit(tmp_path, WrongAtFirst(), mixed)
    (row,) = mixed.report.reallocations
    assert row.moved
    assert not row.kept
    assert row.loss_after == pytest.approx(row.loss_before + 1)
    assert {group: mixed.policy[group].bits for group in row.moved} == {g: bits[0] for g, bits in row.moved.items()}
    assert Report.from_dict(mixed.report.to_dict()).reallocations == (row,)
    console = Console(width=200, record=True, file=StringIO())
    print_report(replace(mixed.report, reallocations=(row, replace(row, kept=True), replace(row, moved={}))), console)
    text = console.export_text()
    assert [text.count(verdict) for verdict in ("did not pay, taken back", "paid, kept", "the same plan")] == [1, 1, 1]
    for group, (before, after) in row.moved.items():
        assert text.count(f"{group}: {before} -> {after}") == 2


def test_what_cannot_move_bits_is_refused(tmp_path):
    with pytest.raises(ValueError, match="reallocate_every"):
        FinetuneOptions(reallocate_every=-1)
    policy = BitPolicy({"network.0": FOUR})
    with pytest.raises(ValueError, match="leave one out"):
        finetuning(policy=policy, finetune=FinetuneOptions(reallocate_every=1))
    trainer = make_trainer(tmp_path, moving(), devices=2, strategy="ddp")
    with pytest.raises(ValueError, match="one device only"):
        trainer.callbacks[0].finetuning.attach(trainer, SmallClassifier(), None)
    module = SmallClassifier()
    module.automatic_optimization = False
    with pytest.raises(ValueError, match="manual optimization"):
        fit(tmp_path, moving(), module=module)
