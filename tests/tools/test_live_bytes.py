"""Bytes of tensors that live, counted by hand."""

import torch
from torch import nn

from lightning_mpq.tools.live_bytes import LiveBytes


def test_a_backward_pass_is_counted_to_the_byte():
    torch.manual_seed(0)
    net, inputs = nn.Sequential(nn.Linear(100, 50), nn.ReLU(), nn.Linear(50, 20)), torch.randn(10, 100)
    with LiveBytes([*net.parameters(), inputs]) as live:
        outputs = net(inputs)
        hidden, last = 4 * 10 * 50, 4 * 10 * 20
        assert live.now == hidden + last  # what the first layer returned is freed once ReLU has its own
        outputs.sum().backward()
    gradients = 4 * sum(parameter.numel() for parameter in net.parameters())
    assert live.now >= gradients + last
    assert live.peak >= gradients + hidden + last
    del outputs
    net.zero_grad(set_to_none=True)
    assert live.now == 0


def test_views_and_what_was_there_before_count_nothing():
    known = torch.zeros(64)
    with LiveBytes([known]) as live:
        views = [known.view(8, 8), known[:4], known.detach()]
        known.add_(1)
    assert live.peak == 0
    assert len(views) == 3
