"""Settings that could not be used after a training are refused before it."""

import pytest

from lightning_mpq.options import CandidateOptions, CurvatureOptions, FinetuneOptions, SolverOptions


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
        (FinetuneOptions, {"learn_ranges": "yes"}, "learn_ranges must be true or false, got 'yes'"),
        (FinetuneOptions, {"learn_scales": 1}, "learn_scales must be true or false, got 1"),
    ],
)
def test_settings_are_refused_where_they_are_written(kind, settings, said):
    kind()
    with pytest.raises(ValueError, match=said):
        kind(**settings)
