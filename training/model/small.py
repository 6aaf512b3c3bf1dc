"""The backbone for small images: narrow and shallow, for training on a CPU."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NAME = "small_resnet"
WIDTHS = (24, 48, 96)  # channels at 1/2, 1/4 and 1/8 of the image's side


class SmallResNet(nn.Module):
    """A residual network with one block each at 1/4 and 1/8 of the image side, pooled by mean and maximum.

    It is narrower than ResNet-18 and takes an eighth of its multiplications at 96 px. It ends at 1/8 of the image side
    instead of 1/32, so that a bleed of two pixels is not lost and heat maps can show where it is. The maximum preserves
    small bleeds, which the mean over the slice would drown out. The stem also gets the coordinates of each pixel,
    because the location of a bleed indicates its type, which is hard to learn in a few minutes without them.

    Source: He et al., "Identity mappings in deep residual networks", ECCV 2016, for the block; Goyal et al.,
    "Accurate, large minibatch SGD", 2017, section 5.1, for initialising its last norm to 0; Liu et al., "An intriguing
    failing of convolutional neural networks and the CoordConv solution", NeurIPS 2018, for the coordinates.
    """

    num_features = 2 * WIDTHS[-1]

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [Stem(WIDTHS[0]), nn.ReLU()]
        for before, width in pairwise(WIDTHS):
            layers.append(Block(before, width))
        self.features = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """Return (B, 192) features of (B, C, S, S) images."""
        maps = self.features(images)
        return torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], dim=1)


class Stem(nn.Module):
    """A convolution with stride 2, a projection of the pixel coordinates added to it, and a norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, width, 3, 2, 1, bias=False)
        self.place = nn.Conv2d(3, width, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, images: Tensor) -> Tensor:
        """Return (B, width, S / 2, S / 2) from (B, C, S, S)."""
        maps = self.convolution(images)
        normed: Tensor = self.norm(maps + self.place(places(maps)))
        return normed


def places(maps: Tensor) -> Tensor:
    """Return the coordinates of each position in (B, D, H, W) maps, (1, 3, H, W): |x|, y and radius, from the centre.

    x and y are in [-1, 1]; |x| is used because the head is nearly symmetric.
    """
    y, x = (torch.linspace(-1, 1, side, device=maps.device, dtype=maps.dtype) for side in maps.shape[2:])
    y, x = torch.meshgrid(y, x.abs(), indexing="ij")
    return torch.stack([x, y, (x * x + y * y).sqrt()])[None]


class Block(nn.Module):
    """Two convolutions with a shortcut, which halve the side and increase the width."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.first = Normed(nn.Conv2d(before, width, 3, 2, 1, bias=False))
        self.second = Normed(nn.Conv2d(width, width, 3, 1, 1, bias=False))
        self.shortcut = nn.Sequential(nn.AvgPool2d(2), Normed(nn.Conv2d(before, width, 1, bias=False)))
        nn.init.zeros_(self.second.norm.weight)

    def forward(self, maps: Tensor) -> Tensor:
        """Return (B, width, H / 2, W / 2) from (B, before, H, W)."""
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
