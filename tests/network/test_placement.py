"""Models that are not on one device, with values, are refused with the way out."""

import pytest
import torch
from helpers.trainer import SmallClassifier, SmallData, make_trainer
from torch import nn

from lightning_mpq import MixedPrecisionQuantization, estimate, profile, round_candidates
from lightning_mpq.network.placement import refuse_spread


def test_a_model_on_one_device_is_taken():
    refuse_spread(nn.Linear(2, 2))
    refuse_spread(nn.ReLU())


@pytest.mark.parametrize("verb", [round_candidates, profile, estimate, lambda model, batches: refuse_spread(model)])
def test_weights_without_values(verb):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4, device="meta"))
    with pytest.raises(ValueError, match=r"'1.weight' of Sequential is on the meta device.*without device_map"):
        verb(model, [torch.randn(4, 4)])


def test_a_model_that_accelerate_has_spread():
    model = nn.Linear(2, 2)
    model.hf_device_map = {"a": 0, "b": "disk"}
    with pytest.raises(ValueError, match="lie on several devices.*without device_map.*cache_dir"):
        refuse_spread(model)
    model.hf_device_map = {"": "cpu"}
    refuse_spread(model)


def test_a_trained_module_without_values_is_refused_before_it_is_called(tmp_path):
    module = SmallClassifier().to("meta")
    module.to = lambda *args, **kwargs: module  # as of a module that is kept where it is
    with pytest.raises(ValueError, match="'network.0.weight' of SmallClassifier is on the meta device"):
        MixedPrecisionQuantization(4.5).quantize_trained(make_trainer(tmp_path), module, SmallData())
