import re
from inspect import signature
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from helpers.command import composed
from hydra import compose, initialize_config_dir
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf

import lightning_mpq
from lightning_mpq.allocation import Budget, CustomCost, LatencyTable
from lightning_mpq.demo.classifier import Classifier
from lightning_mpq.demo.digits import Digits
from lightning_mpq.demo.fashion_mnist import FashionMNIST
from lightning_mpq.groups.groups import LayerGroup, find_groups
from lightning_mpq.options import (
    CandidateOptions,
    CurvatureOptions,
    FinetuneOptions,
    RepairOptions,
    SelectionOptions,
    SolverOptions,
)
from lightning_mpq.schemes import LayerScheme
from lightning_mpq.targets import Target
from lightning_mpq.trainer.callback import MixedPrecisionQuantization

CONF = Path(lightning_mpq.__file__).parent / "conf"
FILES = sorted(str(path.relative_to(CONF)) for path in CONF.rglob("*.yaml"))
TYPES: dict[str, type] = {
    "model": Classifier,
    "data": L.LightningDataModule,
    "trainer": L.Trainer,
    "curvature": CurvatureOptions,
    "candidates": CandidateOptions,
    "budget": Budget,
    "solver": SolverOptions,
    "repair": RepairOptions,
    "selection": SelectionOptions,
    "finetune": FinetuneOptions,
    "target": Target,
    "callbacks": MixedPrecisionQuantization,
}


def constructor_files() -> list[str]:
    return [name for name in FILES if name.partition("/")[0] in TYPES]


def test_there_is_a_file_for_each_group() -> None:
    assert {name.partition("/")[0] for name in FILES} == {*TYPES, "experiment", "config.yaml"}


@pytest.mark.parametrize("name", constructor_files())
def test_each_file_instantiates(name: str) -> None:
    group, _, option = name.removesuffix(".yaml").partition("/")
    config = composed(f"{group}={option}", *(["data.root=some_folder"] if option == "fashion_mnist" else []))
    found = instantiate(config[group].mpq if group == "callbacks" else config[group])
    assert isinstance(found, TYPES[group])
    config = config[group]
    plain = ("curvature", "candidates", "budget", "solver", "repair", "selection", "finetune")
    if group in plain:  # every value arrives as a plain one
        for key, value in vars(found).items():
            assert not OmegaConf.is_config(value)
            if key in config:
                assert value == config[key]


@pytest.mark.parametrize("name", FILES)
def test_each_key_has_a_comment(name: str) -> None:
    plain = re.compile(r"\s*(_target_|_convert_|defaults|- .*|# .*|[\w]+:$)")
    lines = [line for line in (CONF / name).read_text().splitlines() if line.strip()]
    silent = [line for line in lines if not plain.match(line) and " # " not in line and "${" not in line]
    assert silent == []


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("experiment/")])
def test_each_experiment_begins_with_its_command(name: str) -> None:
    option = Path(name).stem
    first, second, *_ = (CONF / name).read_text().splitlines()
    assert first == "# @package _global_"
    assert second.startswith(f"# lightning-mpq experiment={option}")


def test_digits_is_the_default_experiment() -> None:
    assert composed() == composed("experiment=digits")
    assert isinstance(instantiate(composed().data), Digits)


def test_fashion_mnist_trains_resnet20() -> None:
    config = composed("experiment=fashion_mnist", "data.root=some_folder")
    assert isinstance(instantiate(config.data), FashionMNIST)
    assert len(find_groups(instantiate(config.model))) == 22
    assert config.trainer.max_epochs == 6


def test_the_groups_reach_the_callback() -> None:
    config = composed(
        "budget.average_bits=2.5",
        "candidates.bits=[2,4]",
        "+candidates.fixed_bits={*linear: 8, network.conv: 6}",
        "curvature=hessian",
        "solver=additive",
        "cache_dir=some_cache",
    )
    settings = instantiate(config.callbacks.mpq).job.pipeline.settings
    assert settings.budget == Budget(average_bits=2.5)
    assert settings.candidates.bits == [2, 4]
    assert settings.candidates.fixed_bits == {"*linear": 8, "network.conv": 6}
    assert settings.curvature.estimator == "hessian"
    assert settings.solver.objective == "additive"
    assert settings.cache_dir == "some_cache"


@pytest.mark.parametrize("name", ["sequential", "batchnorm", "biases"])
def test_each_repair_is_switched_off_by_one_word(name: str) -> None:
    assert instantiate(composed().callbacks.mpq).job.pipeline.settings.repair == RepairOptions()
    found = instantiate(composed(f"repair.{name}=false").callbacks.mpq).job.pipeline.settings.repair
    assert vars(found) == vars(RepairOptions()) | {name: False}


def test_several_granularities_are_offered_at_once() -> None:
    options = instantiate(composed("candidates.granularities=[channel,64]", "candidates.bits=[3]").candidates)
    assert {(scheme.bits, scheme.granularity) for scheme in options.offered_schemes()} == {(3, "channel"), (3, 64)}


@pytest.mark.parametrize(("option", "epochs", "distill"), [("none", 0, 0), ("qat", 2, 0), ("distill", 2, 1)])
def test_finetuning_reaches_the_callback(option: str, epochs: int, distill: float) -> None:
    phase = instantiate(composed(f"finetune={option}").callbacks.mpq).finetuning
    assert (phase.options.epochs, phase.options.distill, phase.wanted) == (epochs, distill, epochs > 0)
    phase = instantiate(composed(f"finetune={option}", "callbacks.mpq.finetune_steps=7").callbacks.mpq).finetuning
    assert (phase.options.epochs, phase.options.steps) == (0, 7)


def test_candidate_schemes_can_be_written_out() -> None:
    scheme = "{_target_: lightning_mpq.WeightScheme, bits: 3, granularity: 16}"
    options = instantiate(composed(f"candidates.schemes=[{scheme}]").candidates)
    assert [str(found) for found in options.schemes] == ["3-bit symmetric/16"]


@pytest.mark.parametrize(
    "name",
    [
        "callbacks/mpq.yaml",
        "candidates/default.yaml",
        "solver/quadratic.yaml",
        "repair/default.yaml",
        "selection/default.yaml",
        "finetune/none.yaml",
        "finetune/qat.yaml",
        "finetune/distill.yaml",
        "curvature/fisher.yaml",
        "data/digits.yaml",
        "data/fashion_mnist.yaml",
        "model/resnet8.yaml",
        "budget/default.yaml",
    ],
)
def test_each_argument_of_a_constructor_is_a_key(name: str) -> None:
    group, _, option = name.removesuffix(".yaml").partition("/")
    config = composed(f"{group}={option}")[group]
    config = config.mpq if group == "callbacks" else config
    arguments = signature(get_class(config["_target_"])).parameters
    assert set(arguments) == {str(key) for key in config if not str(key).startswith("_")}


def wide(group: LayerGroup, scheme: LayerScheme) -> float:
    """A cost of the user's own."""
    return float(scheme.bits > 4)


def test_budgets_from_tables_functions_and_counts_are_written_in_yaml(tmp_path: Path) -> None:
    table = tmp_path / "times.csv"
    table.write_text("group,scheme,milliseconds\nhead,3,0.25\n")
    function = f"{{_target_: hydra.utils.get_method, path: {__name__}.wide}}"
    custom = f"{{_target_: lightning_mpq.CustomCost, name: wide groups, function: {function}, limit: 3}}"
    overrides = ["average_bits=null", "device_bytes=1e9", "context=2048", "kernel=auto", "macs={head: 8}"]
    overrides += ["mac_average_bits=4", "latency=2", f"latency_table={table}", f"custom=[{custom}]"]
    budget = instantiate(composed(*(f"budget.{override}" for override in overrides)).callbacks.mpq.budget)
    assert budget == Budget(
        device_bytes=1e9,
        context=2048,
        kernel="auto",
        macs={"head": 8},
        mac_average_bits=4,
        latency=2,
        latency_table=LatencyTable({("head", "3"): 0.25}),
        custom=[CustomCost("wide groups", budget.custom[0].function, 3)],
    )
    assert budget.custom[0].function.__name__ == "wide"


def foreign_app(folder: Path, callbacks: str) -> Path:
    """Write the configuration of another Hydra application, with groups of its own under our names."""
    (folder / "callbacks").mkdir()
    (folder / "solver").mkdir()
    (folder / "callbacks" / "early.yaml").write_text("early: {_target_: lightning.pytorch.callbacks.Timer}\n")
    (folder / "solver" / "adam.yaml").write_text("lr: 0.1\n")
    (folder / "config.yaml").write_text(
        f"defaults: [{{solver: adam}}, {{callbacks: {callbacks}}}, _self_]\n"
        "hydra: {searchpath: [pkg://lightning_mpq.conf]}\n"
    )
    return folder


@pytest.mark.parametrize("callbacks", ["mpq", "[early, mpq]"])
def test_another_application_adds_the_callback(tmp_path: Path, callbacks: str) -> None:
    with initialize_config_dir(str(foreign_app(tmp_path, callbacks)), version_base="1.3"):
        config = compose("config", ["callbacks.mpq.budget.average_bits=2.5", "callbacks.mpq.repair.batchnorm=false"])
    assert set(config) == {"solver", "callbacks"}
    assert config.solver == {"lr": 0.1}
    found: Any = instantiate(config.callbacks.mpq)
    assert isinstance(found, MixedPrecisionQuantization)
    assert found.job.pipeline.settings.budget == Budget(average_bits=2.5)
    assert found.job.pipeline.settings.repair == RepairOptions(batchnorm=False)
    assert ("early" in config.callbacks) == ("early" in callbacks)
