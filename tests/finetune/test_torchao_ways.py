"""The ways that the benchmark compares begin at the same network and end as they were trained."""

import pytest
import torch
from torch import nn

pytest.importorskip("torchao", reason="the benchmark compares with torchao")

from benchmarks.methods.finetuning import WAYS, ours_from_torchao, torchao_dynamic  # noqa: E402


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 4))


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(32, 16, generator=generator), torch.randint(4, (32,), generator=generator)) for _ in range(2)]


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_our_start_computes_what_torchao_starts_with(bits: int) -> None:
    ours, theirs = network(), network()
    ours_from_torchao(ours, bits, batches())
    torchao_dynamic(theirs, bits, batches())
    inputs = batches()[0][0]
    torch.testing.assert_close(ours(inputs), theirs(inputs), rtol=1e-6, atol=1e-6)
    assert not torch.allclose(ours(inputs), network()(inputs), atol=1e-3)


@pytest.mark.parametrize("way", WAYS)
def test_conversion_keeps_what_was_trained(way: str) -> None:
    net = network()
    prepared = WAYS[way](net, 3, batches())
    optimizer = torch.optim.AdamW([*net.parameters(), *([] if "torchao QAT" in way else prepared.scales)], lr=1e-2)
    for images, labels in batches():
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images), labels).backward()
        optimizer.step()
    inputs = batches()[0][0]
    trained = net(inputs).detach()
    stored = prepared.convert()
    torch.testing.assert_close(net(inputs).detach(), trained, rtol=1e-5, atol=1e-5)
    weights, rows = 16 * 24 + 24 * 4, 24 + 4
    scale_bits = (16, 24) if "second-order" in way else (32,)  # of a layer with zero points: 24
    low, high = (3 + each * rows / weights for each in (min(scale_bits), max(scale_bits)))
    assert low - 1e-6 <= stored.grid_bits <= high + 1e-6
    assert type(net[0].weight) is not nn.Parameter
