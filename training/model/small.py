"""Build the backbone of small images, narrow and shallow, fit for training on a CPU."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NAME = "small_resnet"
WIDTHS = (24, 48, 96)  # channels at 1/2, 1/4 and 1/8 of the image's side


class SmallResNet(nn.Module):
    """A residual network with one block at each of three resolutions, and the mean and the maximum of each feature map.

    Against ResNet-18 it has a fifth of the multiplications at 96 px, for it is narrow; and it ends at an eighth of the
    image's side instead of a 32nd, so that a bleed of two pixels is not lost and a heat map shows where it lies. The
    maximum tells of a small bleed what the mean over the whole slice would drown.

    Source: He et al., "Identity mappings in deep residual networks", ECCV 2016, for the block; Goyal et al.,
    "Accurate, large minibatch SGD", 2017, section 5.1, for its last norm that begins at 0.
    """

    num_features = 2 * WIDTHS[-1]

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [Normed(nn.Conv2d(3, WIDTHS[0], 3, 2, 1, bias=False)), nn.ReLU()]
        for before, width in zip((WIDTHS[0], *WIDTHS), WIDTHS, strict=False):
            layers.append(Block(before, width))
        self.features = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """Return (B, 192) features of (B, C, S, S) images."""
        maps = self.features(images)
        return torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], dim=1)


class Block(nn.Module):
    """Two convolutions beside a shortcut; where the width grows, the side is halved."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        halves = before != width
        self.first = Normed(nn.Conv2d(before, width, 3, 1 + halves, 1, bias=False))
        self.second = Normed(nn.Conv2d(width, width, 3, 1, 1, bias=False))
        self.shortcut: nn.Module = nn.Identity()
        if halves:
            self.shortcut = nn.Sequential(nn.AvgPool2d(2), Normed(nn.Conv2d(before, width, 1, bias=False)))
        nn.init.zeros_(self.second.norm.weight)

    def forward(self, maps: Tensor) -> Tensor:
        """Return (B, width, H', W') from (B, before, H, W)."""
        return F.relu(self.shortcut(maps) + self.second(F.relu(self.first(maps))))


class Normed(nn.Module):
    """A convolution and its norm."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = convolution
        self.norm = nn.BatchNorm2d(convolution.out_channels)

    def forward(self, maps: Tensor) -> Tensor:
        normed: Tensor = self.norm(self.convolution(maps))
        return normed
