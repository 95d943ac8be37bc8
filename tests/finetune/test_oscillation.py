"""Oscillating weights: the damping loss and its gradient, and freezing, against a slow account of single weights."""

import pytest
import torch
from torch import nn

from lightning_mpq.finetune import OscillationFreezer, damping_loss, fake_quantize
from lightning_mpq.policy import GRIDS, BitPolicy, WeightScheme


def prepared(grid="half", granularity="channel", bits=2):
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(6, 4, bias=False))
    scheme = WeightScheme(bits, granularity, grid, clip=0.7)
    return net, fake_quantize(net, BitPolicy({"0": scheme}))


@pytest.mark.parametrize("granularity", ["tensor", "channel", 4])
@pytest.mark.parametrize("grid", GRIDS)
def test_damping_pulls_every_weight_to_its_level(grid, granularity):
    net, handle = prepared(grid, granularity)
    weight, quantizer = handle.weights["0"]
    with torch.no_grad():
        weight.mul_(1.3)
    levels = net[0].weight.detach()
    loss = damping_loss(handle)
    loss.backward()
    assert quantizer.relative_scale.grad is None
    lowest = quantizer.levels(torch.zeros(4, 6, dtype=torch.uint8), torch.float32)
    highest = quantizer.levels(torch.full((4, 6), 3, dtype=torch.uint8), torch.float32)
    expected = 0.0
    for r in range(4):
        for c in range(6):
            value, low, high = (float(each[r, c]) for each in (weight.detach(), lowest, highest))
            error = min(max(value, low), high) - float(levels[r, c])
            expected += error**2
            slope = 2 * error if low <= value <= high else 0.0
            assert float(weight.grad[r, c]) == pytest.approx(slope, abs=1e-6)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    for _ in range(200):
        weight.grad = None
        damping_loss(handle).backward()
        with torch.no_grad():
            weight -= 0.2 * weight.grad
    inside = (weight > lowest) & (weight < highest)
    torch.testing.assert_close(weight[inside], levels[inside])


def test_a_weight_that_goes_to_and_fro_is_held_and_the_others_are_not():
    net, handle = prepared()
    weight, quantizer = handle.weights["0"]
    low, high = (float(quantizer.levels(torch.full((4, 6), code), torch.float32)[1, 2]) for code in (1, 2))
    with torch.no_grad():
        weight[1, 2] = low
    freezer = OscillationFreezer(handle, threshold=0.3, momentum=0.1)
    frequency, seen = 0.0, []
    for step in range(12):
        with torch.no_grad():
            weight[1, 2] = high if step % 2 else low
            weight[3, 3] += 1e-4
        freezer.step()
        if step > 1:  # the first change has nothing to go back from
            frequency += 0.1 * (1 - frequency)
        seen.append((frequency > 0.3, freezer.frozen_share > 0))
    assert [expected for expected, _ in seen] == [held for _, held in seen]
    assert freezer.frozen_share == 1 / 24
    held = net[0].weight.detach()[1, 2].clone()
    with torch.no_grad():
        weight[1, 2] = 7.0
    freezer.step()
    assert torch.equal(net[0].weight.detach()[1, 2], held)
    assert weight[1, 2].item() == pytest.approx(float(held))


def test_weights_of_other_optimizers_and_new_grids_are_left_out():
    net, handle = prepared()
    weight, quantizer = handle.weights["0"]
    low, high = (quantizer.levels(torch.full((4, 6), code), torch.float32)[1, 2] for code in (1, 2))

    def go_to_and_fro(names):
        for level in (low, high, low):
            with torch.no_grad():
                weight[1, 2] = level
            freezer.step(names)

    freezer = OscillationFreezer(handle, threshold=0.05, momentum=0.1)
    go_to_and_fro(["another"])
    assert freezer.frozen_share == 0
    go_to_and_fro(["0"])
    assert freezer.frozen_share == 1 / 24
    freezer.forget(["0"])
    assert freezer.frozen_share == 0
    with torch.no_grad():
        weight[1, 2] = high
    freezer.step()  # one change has nothing to go back from
    assert freezer.frozen_share == 0


def test_history_is_resumed():
    def run(steps, freezer, weight, seed=0):
        generator = torch.Generator().manual_seed(seed)
        for _ in range(steps):
            with torch.no_grad():
                weight += 0.3 * torch.randn(weight.shape, generator=generator)
            freezer.step()

    net, handle = prepared()
    freezer = OscillationFreezer(handle, 0.2, 0.1)
    run(10, freezer, handle.weights["0"][0])
    twin, other = prepared()
    twin.load_state_dict(net.state_dict())
    resumed = OscillationFreezer(other, 0.2, 0.1)
    resumed.load_state_dict(freezer.state_dict())
    run(10, freezer, handle.weights["0"][0], seed=5)
    run(10, resumed, other.weights["0"][0], seed=5)
    assert 0 < freezer.frozen_share == resumed.frozen_share
    assert torch.equal(twin[0].weight, net[0].weight)
    with pytest.raises(ValueError, match="differ in the layer '0'"):
        resumed.load_state_dict({})


@pytest.mark.parametrize(("argument", "value"), [("threshold", 0.0), ("momentum", 1.5)])
def test_settings_out_of_range(argument, value):
    with pytest.raises(ValueError, match=argument):
        OscillationFreezer(prepared()[1], **{argument: value})
