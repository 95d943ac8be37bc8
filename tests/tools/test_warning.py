"""Warnings name the line of the user's code which led to them, however it came there."""

import ast
import warnings
from pathlib import Path

import pytest
import torch
from helpers.trainer import SmallClassifier, SmallData, make_callback, make_trainer
from torch import nn

import lightning_mpq as mpq
from lightning_mpq.tools.warning import warn


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def batches(samples: int) -> list[torch.Tensor]:
    return list(torch.randn(2, samples, 4))


class Scaled(nn.Module):
    """Holds a matrix that no kind of layer is known to multiply by."""

    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(4, 64))

    def forward(self, inputs):
        return inputs @ self.matrix


def allocation():
    taylor = mpq.profile(net(), batches(32), bits=[2, 4], likelihood=mpq.Categorical())
    return mpq.allocate(taylor, mpq.Budget(average_bits=30.0))


def coverage():
    unknown = nn.Sequential(nn.Linear(4, 4), nn.PReLU(4), nn.LayerNorm(4), Scaled())
    return mpq.profile(unknown, batches(32), bits=[2, 4], likelihood=mpq.Categorical())


def few_rows():
    groups = mpq.find_groups(net())
    return mpq.round_candidates(net(), batches(1), groups, mpq.make_candidates(groups, [2, 4]))


def guessed_likelihood():
    labelled = [(inputs, torch.zeros(32, dtype=torch.long)) for inputs in batches(32)]
    return mpq.profile(net(), labelled, bits=[2, 4], likelihood="auto")


@pytest.mark.parametrize("led_to_it", [allocation, coverage, few_rows, guessed_likelihood])
def test_the_caller_is_named(led_to_it):
    with pytest.warns(UserWarning, match=".") as caught:
        led_to_it()
    assert {each.filename for each in caught} == {__file__}


def test_a_job_of_the_callback_names_the_line_that_fits(tmp_path):
    with pytest.warns(UserWarning, match="rows a column") as caught:
        make_trainer(tmp_path, make_callback(compare=False, calibration_batches=1)).fit(SmallClassifier(), SmallData(8))
    assert {each.filename for each in caught if "rows a column" in str(each.message)} == {__file__}


def test_code_of_others_in_between_is_named_as_the_users():
    namespace = {"warn": warn}
    exec(compile("def own():\n    warn('It is so.')", "other.py", "exec"), namespace)
    with pytest.warns(UserWarning, match="It is so") as caught:
        namespace["own"]()
    assert caught[0].filename == "other.py"


def test_a_warning_is_shown_once_for_each_line_that_leads_to_it():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            warn("Shown once.")
    assert len(caught) == 1


def test_every_warning_of_the_package_is_given_this_way():
    package = Path(mpq.__file__).parent
    found = [
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("warnings.warn")
    ]
    assert found == ["tools/warning.py"]
