"""Measuring leaves no trace: modes, flags, buffers, metrics and random states come back, after an error too."""

import random
import threading
from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.networks import convnet, images
from helpers.state import assert_state, state_of
from torch import nn
from torchmetrics.classification import MulticlassAccuracy

from lightning_mpq.network.isolation import isolated


@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_as_before(fails):
    model = convnet(dropout=True)
    model.metric = MulticlassAccuracy(3)
    model.metric.update(torch.randn(8, 3), torch.zeros(8, dtype=torch.long))
    model.conv.bias.requires_grad_(False)
    model.norm.eval()
    state, accuracy = state_of(model), float(model.metric.compute())
    modes, flags = [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]
    generators = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    with suppress(ZeroDivisionError), isolated(model):
        assert not any(module.training for module in model.modules())
        assert not any(parameter.requires_grad for parameter in model.parameters())
        torch.rand(3), random.random(), np.random.rand()
        model.train()
        nn.Sequential(model.conv, model.norm)(images(8)[0])  # moves the statistics
        model.metric.update(torch.eye(3), torch.arange(3))
        if fails:
            raise ZeroDivisionError
    assert_state(model, state)
    assert float(model.metric.compute()) == accuracy
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == flags
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert random.getstate() == generators[1]
    assert np.random.get_state()[1].tolist() == generators[2]


def test_inside_attention_and_autocast_can_be_differentiated_twice():
    model = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True, dropout=0.0).eval()
    enabled = torch.backends.mha.get_fastpath_enabled()
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode(), isolated(model):
        assert not torch.backends.mha.get_fastpath_enabled()
        inputs = torch.randn(2, 3, 4, requires_grad=True)
        outputs = model(inputs)
        assert outputs.dtype == torch.float32
        (first,) = torch.autograd.grad(outputs.square().sum(), inputs, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), inputs)
    assert second.abs().sum() > 0
    assert torch.backends.mha.get_fastpath_enabled() == enabled


def torch_settings():
    return {
        "fast path": torch.backends.mha.get_fastpath_enabled(),
        "flash": torch.backends.cuda.flash_sdp_enabled(),
        "efficient": torch.backends.cuda.mem_efficient_sdp_enabled(),
        "mkldnn": torch.backends.mkldnn.enabled,
        "cudnn": torch.backends.cudnn.enabled,
        "stance": torch._dynamo.eval_frame._stance.stance,
    }


@pytest.mark.parametrize("fails", [False, True])
def test_blocks_that_overlap_in_two_threads_leave_the_settings_as_they_were(fails):
    model, other = nn.LSTM(2, 2), nn.LSTM(2, 2)
    before, generators = torch_settings(), (torch.get_rng_state(), random.getstate())
    within, first_is_over, seen = threading.Event(), threading.Event(), []

    def second():
        with suppress(ZeroDivisionError), isolated(other):
            within.set()
            first_is_over.wait()
            seen.append(torch_settings())
            if fails:
                raise ZeroDivisionError

    thread = threading.Thread(target=second)
    with isolated(model):
        torch.rand(3), random.random()
        inside = torch_settings()
        thread.start()
        within.wait()
    first_is_over.set()
    thread.join()
    assert inside != before
    assert seen == [inside]
    assert torch_settings() == before
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert random.getstate() == generators[1]


def test_models_of_transformers_keep_no_keys_and_values_inside():
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].config = SimpleNamespace(use_cache=True)
    with suppress(ZeroDivisionError), isolated(model):
        assert model[0].config.use_cache is False
        raise ZeroDivisionError
    assert model[0].config.use_cache is True
    assert vars(model[0].config) == {"use_cache": True}
