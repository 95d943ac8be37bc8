"""What version 0.1 called otherwise still works, and says what it is called now."""

import pytest
import torch
from helpers.trainer import make_callback
from torch import nn

import lightning_mpq as mpq
from lightning_mpq.moved import _MOVED


@pytest.mark.parametrize("name", _MOVED)
def test_names_lead_to_what_they_stood_for(name):
    with pytest.warns(DeprecationWarning, match=f"lightning_mpq.{name} is .* now"):
        found = getattr(mpq, name)
    assert found.__name__ in (name, "load", "SelectionOptions")
    assert name not in mpq.__all__


def test_other_names_are_unknown():
    with pytest.raises(AttributeError, match="has no attribute 'nothing_of_ours'"):
        _ = mpq.nothing_of_ours


def test_arguments_by_their_former_names():
    net = nn.Sequential(nn.Linear(3, 2))
    batches = [torch.randn(8, 3)]
    with pytest.warns(DeprecationWarning, match="curvature= of profile is estimator= now"):
        taylor = mpq.profile(net, batches, bits=[2], curvature="gauss_newton", likelihood=mpq.Gaussian())
    assert taylor.estimator == "gauss_newton"
    with pytest.warns(DeprecationWarning, match="verdict= of .* is compare= now"):
        assert not make_callback(verdict=False).job.compare
    with pytest.warns(DeprecationWarning, match="second_order_schemes is make_candidates"):
        schemes = mpq.second_order_schemes([2, 3], grids=["half"])
    assert [str(scheme) for scheme in schemes] == ["2-bit half/channel", "3-bit half/channel"]
