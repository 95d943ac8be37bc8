"""A small MobileNetV2 for 28x28 images: depthwise convolutions, whose channels have nine weights each."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise and 1x1 projection, added to the input where shapes allow.

    M. Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018, arXiv:1801.04381, table 1.

    Args:
        in_channels: Channels that come in.
        out_channels: Channels that go out.
        stride: Step of the depthwise convolution.
        expansion: Width inside over ``in_channels``.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        """Make the layers."""
        super().__init__()
        width = in_channels * expansion
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU6(),
            nn.Conv2d(width, width, 3, stride=stride, padding=1, groups=width, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU6(),
            nn.Conv2d(width, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.adds = stride == 1 and in_channels == out_channels

    def forward(self, images: Tensor) -> Tensor:
        """Map [batch, in_channels, height, width] to [batch, out_channels, height / stride, width / stride]."""
        return images + self.layers(images) if self.adds else self.layers(images)


class MobileNet(nn.Module):
    """MobileNetV2 with few and narrow blocks.

    Args:
        blocks: (out_channels, stride) of each block.
        expansion: Width inside of a block over its input.
        num_classes: Length of the output.
    """

    def __init__(
        self,
        blocks: Sequence[tuple[int, int]] = ((16, 1), (24, 2), (24, 1), (40, 2), (40, 1), (64, 1)),
        expansion: int = 4,
        num_classes: int = 10,
    ) -> None:
        """Make the layers."""
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU6())
        entries = [16, *(channels for channels, _ in blocks)]
        self.blocks = nn.Sequential(
            *(
                InvertedResidual(entry, channels, stride, expansion)
                for entry, (channels, stride) in zip(entries, blocks, strict=False)
            )
        )
        self.head = nn.Linear(entries[-1], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images, [batch, 1, height, width], to logits, [batch, num_classes]."""
        return self.head(self.blocks(self.stem(images)).mean(dim=(2, 3)))
