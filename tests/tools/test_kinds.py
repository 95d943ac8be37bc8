"""Arguments of another kind than the annotations say, in every public function."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from torch import nn

import lightning_mpq as mpq
from lightning_mpq.tools.kinds import checked_kinds

NET = nn.Sequential(nn.Linear(4, 3))
POLICY = mpq.BitPolicy({"0": mpq.WeightScheme(4)})
TAYLOR = mpq.profile(NET, [torch.randn(8, 4)], bits=[2, 4], likelihood=mpq.Categorical())
ALLOCATION = mpq.allocate(TAYLOR, mpq.Budget(average_bits=20.0))


@dataclass
class Settings:
    width: int = 3


class Holder:
    def __init__(self):
        self.settings = Settings()


@checked_kinds
def verb(
    model: nn.Module,
    settings: Settings | None = None,
    *,
    path: str | Path | None = None,
    function: Callable[[int], int] | None = None,
    layers: Sequence[nn.Module] | None = None,
    ranges: Mapping[str, Settings] | None = None,
    kind: type[nn.Module] | None = None,
    width: int = 3,
) -> str:
    return "done"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"settings": Settings(), "path": "a", "function": len, "layers": [NET], "ranges": {"a": Settings()}},
        {"path": Path("a"), "layers": (), "ranges": {}, "kind": nn.Linear, "width": "left to the function"},
        {"layers": np.array([NET, None], dtype=object)[:1]},
        {"layers": {"a": NET}.values()},
    ],
)
def test_what_fits_is_passed_on(options):
    assert verb(NET, **options) == "done"


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        (3, {}, "verb: model must be a Module, got 3."),
        (nn.Linear, {}, "verb: model must be a Module, got a class Linear. Give an instance, Linear(...)."),
        (
            NET,
            {"settings": False},
            "verb: settings must be a Settings or None, got False. Settings(width=...) makes",
        ),
        (NET, {"settings": Holder()}, "verb: settings must be a Settings or None, got a Holder. Give its settings."),
        (NET, {"path": 3}, "verb: path must be a path or None, got 3."),
        (NET, {"function": "x"}, "verb: function must be a function or None, got 'x'."),
        (NET, {"layers": NET.children}, "verb: layers must be a list of Module or None, got a method."),
        (NET, {"layers": "ab"}, "verb: layers must be a list of Module or None, got 'ab'."),
        (NET, {"layers": [3]}, "verb: layers must be a list of Module or None, got [3]."),
        (NET, {"ranges": [3]}, "verb: ranges must be a mapping from names to Settings or None, got [3]."),
        (NET, {"ranges": {"a": 3}}, "verb: ranges must be a mapping from names to Settings or None, got {'a': 3}."),
        (NET, {"kind": 3}, "verb: kind must be a subclass of Module or None, got 3."),
    ],
)
def test_what_does_not_fit_is_said(given, options, message):
    with pytest.raises(TypeError) as refusal:
        verb(given, **options)
    assert str(refusal.value).startswith(message)


def test_a_call_with_wrong_names_is_pythons_own_error():
    with pytest.raises(TypeError, match="unexpected keyword argument 'wide'"):
        verb(NET, wide=3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mpq.allocate(TAYLOR, 4.0), "budget must be a Budget, got 4.0. Budget(average_bits=...) makes one."),
        (lambda: mpq.quantize(NET, ALLOCATION), "policy must be a BitPolicy, got an Allocation. Give its policy."),
        (lambda: mpq.quantize(NET, "p.json"), "got 'p.json'. BitPolicy.load(path) reads one from a file."),
        (lambda: mpq.quantize(NET, POLICY, repair=False), "repair must be a RepairOptions or None, got False."),
        (lambda: mpq.changes(POLICY, ALLOCATION), "after must be a BitPolicy, got an Allocation. Give its policy."),
        (lambda: mpq.explain(TAYLOR), "allocation must be an Allocation, got a TaylorModel."),
        (
            lambda: mpq.fake_quantize(NET, POLICY, TAYLOR),
            "rounded must be a mapping from names to QuantizedRows",
        ),
        (lambda: mpq.profile(NET, None), "batches must be a list or a loader of batches, got None."),
        (lambda: mpq.make_candidates(NET), "groups must be a LayerGroups or a list of LayerGroup, got a Sequential."),
        (
            lambda: mpq.make_candidates(mpq.find_groups(NET), schemes=[4]),
            "schemes must be a list of WeightScheme or",
        ),
        (lambda: mpq.save(NET, None), "folder must be a path, got None."),
        (lambda: mpq.load(3, NET), "path must be a path, got 3."),
        (lambda: mpq.estimate(NET, [], candidates=[2]), "candidates must be a CandidateOptions or None, got [2]."),
        (lambda: mpq.MixedPrecisionQuantization(3, repair=False), "repair must be a RepairOptions or None, got False."),
        (lambda: mpq.MixedPrecisionQuantization(3, solver="x"), "solver must be a SolverOptions or None, got 'x'."),
        (lambda: mpq.MixedPrecisionQuantization(3, finetune=True), "finetune must be a FinetuneOptions or None, got"),
        (
            lambda: mpq.MixedPrecisionQuantization(3, policy={"0": 4}),
            "policy must be a BitPolicy or a path or None",
        ),
        (lambda: mpq.MixedPrecisionQuantization(3, report_path=3), "report_path must be a path or None, got 3."),
        (lambda: mpq.MixedPrecisionQuantization(3, forward_fn="x"), "forward_fn must be a function or None, got 'x'."),
    ],
)
def test_what_users_pass_by_mistake(call, message):
    with pytest.raises(TypeError) as refusal:
        call()
    assert message in str(refusal.value)
    assert type(NET[0]) is nn.Linear


@pytest.mark.parametrize(
    ("module", "data", "message"),
    [
        (NET, None, "pl_module must be a LightningModule or an OptimizedModule, got a Sequential."),
        (L.LightningModule(), [1], "datamodule must be a LightningDataModule or None, got [1]."),
        (L.LightningModule(), L.LightningDataModule, "got a class LightningDataModule. Give an instance, Lightning"),
    ],
)
def test_a_trained_model_and_its_data(module, data, message):
    trainer = L.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    with pytest.raises(TypeError) as refusal:
        mpq.MixedPrecisionQuantization(3).quantize_trained(trainer, module, data)
    assert message in str(refusal.value)


VERBS = [each for name in mpq.__all__ if inspect.isfunction(each := getattr(mpq, name))]


@pytest.mark.parametrize("public", VERBS, ids=lambda public: public.__name__)
def test_every_public_function_checks_its_first_argument(public):
    parameters = inspect.signature(public).parameters
    needed = [name for name, each in parameters.items() if each.default is each.empty and each.kind != each.VAR_KEYWORD]
    with pytest.raises((TypeError, ValueError), match=rf"{next(iter(parameters))}|got|Expected|must be"):
        public(**dict.fromkeys(needed, object()))
