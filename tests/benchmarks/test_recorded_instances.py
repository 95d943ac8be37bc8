"""Recorded Taylor models: what is written is read again, and the files that are there are small and whole."""

import numpy as np
import pytest
import torch
from helpers.taylor_models import make_taylor

from benchmarks.recorded_instances.files import FOLDER, load, recorded_problem, store
from benchmarks.runs.allocation.cases import RECORDED


def test_what_is_stored_is_loaded(tmp_path):
    taylor = make_taylor(groups=5, errors=True)
    store(taylor, tmp_path / "hand.npz")
    recorded = load(str(tmp_path / "hand.npz"))
    assert recorded.names == tuple(group.name for group in taylor.groups)
    assert recorded.stored_bits.tolist() == [candidate.stored_bits for candidate in taylor.candidates]
    scale = taylor.curvature.diagonal().sqrt()
    torch.testing.assert_close(
        torch.tensor(recorded.curvature) / torch.outer(scale, scale),
        taylor.curvature / torch.outer(scale, scale),
        rtol=0,
        atol=2e-3,
    )


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_models_are_there(name):
    problem = recorded_problem(name, 1.0)
    assert np.isfinite(problem.curvature).all()
    assert problem.drop_unaffordable(np.ones(len(problem.group), dtype=bool)) is not None
    assert 0 < load(name).intensity <= 1


def test_they_are_small():
    assert sum(path.stat().st_size for path in FOLDER.glob("*.npz")) < 2e6
