import pytest
import torch

from lightning_mpq.demo.resnet import ResNet
from lightning_mpq.groups.groups import find_groups

RESNET20_SIZES = (
    [144] + [2304] * 6 + [4608, 9216, 512] + [9216] * 4 + [18432, 36864, 2048] + [36864] * 4 + [640]
)  # fmt: skip


def test_depth_20_has_the_22_weights_of_the_published_layout() -> None:
    groups = find_groups(ResNet())
    assert [group.weight_count for group in groups] == RESNET20_SIZES
    assert not groups.left_in_float


def test_each_stage_after_the_first_halves_the_image() -> None:
    network = ResNet(depth=8, widths=(4, 8, 16))
    images = torch.randn(2, 1, 28, 28)
    hidden = network.conv(images)
    shapes = []
    for stage in network.stages:
        hidden = stage(hidden)
        shapes.append(tuple(hidden.shape))
    assert shapes == [(2, 4, 28, 28), (2, 8, 14, 14), (2, 16, 7, 7)]
    assert network(images).shape == (2, 10)


def test_gradients_reach_every_parameter() -> None:
    network = ResNet(depth=8, widths=(4, 8, 16))
    network(torch.randn(4, 1, 8, 8)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


@pytest.mark.parametrize(("depth", "widths"), [(9, (4, 8, 16)), (2, (4,)), (8, ())])
def test_unreachable_depth_is_refused(depth: int, widths: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=f"depth must be .* got {depth} with {len(widths)} stages"):
        ResNet(depth=depth, widths=widths)
