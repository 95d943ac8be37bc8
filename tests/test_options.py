"""Settings that could not be used after a training are refused before it."""

import pytest
import torch
from torch import nn

from lightning_mpq import Categorical, find_groups, make_candidates, profile
from lightning_mpq.allocation import Rules
from lightning_mpq.options import CandidateOptions, CurvatureOptions, FinetuneOptions, SelectionOptions, SolverOptions

NO_NUMBERS = ("1m", float("nan"), True, [1], torch.ones(2))
LISTS, MAPPINGS = ("bits", "grids", "granularities"), ("fixed_bits", "min_bits", "max_bits", "groups")
NO_COUNTS = (*NO_NUMBERS, 2.5)


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        (CandidateOptions, {"rounding": "up"}, "rounding must be one of 'second_order', 'nearest', got 'up'"),
        (CandidateOptions, {"bits": (2, 9)}, "bits must be an integer from 2 to 8, got 9"),
        (CandidateOptions, {"bits": ()}, "no scheme to offer: give at least one of bits"),
        (CandidateOptions, {"schemes": []}, "no scheme to offer"),
        (CandidateOptions, {"granularities": ("row",)}, "granularity must be .* got 'row'"),
        (CurvatureOptions, {"estimator": "fischer"}, "estimator must be one of 'fisher', .* got 'fischer'"),
        (CurvatureOptions, {"loss": "accuracy"}, "loss must be one of None, 'divergence', 'task', got 'accuracy'"),
        (
            CurvatureOptions,
            {"statistics": "new"},
            "statistics must be one of 'auto', 'frozen', 'reestimated', got 'new'",
        ),
        (CurvatureOptions, {"draws": 0}, "draws and chunk_size must be positive"),
        (CurvatureOptions, {"tolerance": 0.0}, "tolerance must be a positive fraction"),
        (CurvatureOptions, {"cluster": 0}, "cluster must be a positive number of samples in a row, got 0"),
        (SolverOptions, {"objective": "linear"}, "objective must be one of 'quadratic', 'additive', got 'linear'"),
        (SolverOptions, {"solver": "gurobi"}, "solver must be one of 'highs', 'cbc', got 'gurobi'"),
        (SolverOptions, {"time_limit": -1}, "time_limit must be a number of seconds of at least 0"),
        *(
            (CandidateOptions, {name: 4}, f"{name} must be a list such as")
            for name in ("bits", "grids", "granularities")
        ),
        (CandidateOptions, {"grids": "half"}, "grids must be a list such as .*, got 'half'"),
        *((CurvatureOptions, {"draws": value}, "draws and chunk_size must be positive") for value in NO_COUNTS),
        *((CurvatureOptions, {"chunk_size": value}, "draws and chunk_size must be positive") for value in NO_COUNTS),
        *((CurvatureOptions, {"tolerance": value}, "tolerance must be a positive") for value in NO_NUMBERS),
        *((CurvatureOptions, {"seed": value}, "seed must be an integer") for value in (None, *NO_COUNTS)),
        (CurvatureOptions, {"shrink": "no"}, "shrink must be one of True, False, got 'no'"),
        *((SolverOptions, {"time_limit": value}, "time_limit must be a number") for value in (None, *NO_NUMBERS)),
        *((SolverOptions, {"gap": value}, "gap must be a finite number") for value in (None, *NO_NUMBERS)),
        *((SolverOptions, {"seed": value}, "seed must be an integer") for value in (None, *NO_COUNTS)),
        (SolverOptions, {"rules": {"equal": []}}, r"rules must be a Rules\(\.\.\.\), got {'equal': \[\]}"),
        *((SelectionOptions, {"policies": value}, "Expected policies of at least 1") for value in (None, *NO_COUNTS)),
        *((SelectionOptions, {"rounds": value}, "rounds of at least 0") for value in (None, *NO_COUNTS)),
        *((SelectionOptions, {"trust": value}, "a trusted factor of at least 1") for value in (None, *NO_NUMBERS)),
        *(
            (FinetuneOptions, {name: value}, f"{name} must be ")
            for name in ("learning_rate", "scale_learning_rate", "temperature", "distill", "margin")
            for value in (None, *NO_NUMBERS)
        ),
        (FinetuneOptions, {"teacher_dtype": "int8"}, "teacher_dtype must be one of None, 'float32', .* got 'int8'"),
        *(
            (Rules, {name: value}, f"{name} must be a mapping such as {{'\\*.head': 8}}, got")
            for name in ("min_bits", "max_bits", "min_input_bits", "max_input_bits", "fixed")
            for value in (None, 4, "head", ["head"], {0: 4})
        ),
        *((Rules, {"equal": value}, "equal must be a list such as") for value in (None, 4, "*.q", {"*.q": "*.k"})),
        (FinetuneOptions, {"learn_ranges": "yes"}, "learn_ranges must be true or false, got 'yes'"),
        (FinetuneOptions, {"learn_scales": 1}, "learn_scales must be true or false, got 1"),
    ],
)
def test_settings_are_refused_where_they_are_written(kind, settings, said):
    kind()
    with pytest.raises(ValueError, match=said):
        kind(**settings)


@pytest.mark.parametrize("likelihood", ["categorical", Categorical, 1, torch.ones(2)])
def test_what_is_no_likelihood_is_refused(likelihood):
    with pytest.raises(TypeError, match="likelihood must be 'auto' or a Likelihood"):
        CurvatureOptions(likelihood=likelihood)
    with pytest.raises(TypeError, match="likelihood must be 'auto' or a Likelihood"):
        profile(nn.Linear(2, 2), [torch.ones(2, 2)], likelihood=likelihood)


def test_what_is_offered_is_a_list():
    groups = find_groups(nn.Linear(2, 2))
    for name in LISTS:
        with pytest.raises(ValueError, match=f"{name} must be a list such as"):
            make_candidates(groups, **{name: 4})
    assert len(make_candidates(groups, iter([2, 4]), grids=iter(["half"]))) == 2


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        *(({name: 4}, f"{name} must be a mapping such as") for name in MAPPINGS),
        *(({"keep_float": value}, r"keep_float must be a list such as \['\*.head'\]") for value in ("head", 4, None)),
    ],
)
def test_rules_of_groups_are_mappings_and_lists(rules, said):
    with pytest.raises(ValueError, match=said):
        find_groups(nn.Linear(2, 2), **rules)
