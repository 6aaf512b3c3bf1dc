"""Test heat maps: they show the position of the evidence, and its sign."""

import numpy as np
import pytest
import torch
from torch import nn

from training.model.augment import Normalise
from training.model.network import FusionNet, build_model
from training.report.heatmap import HeatMaps
from training.report.pictures import overlay
from training.run.config import TrainConfig

pytest.importorskip("captum", reason="captum is not installed")
PLAIN = Normalise(np.zeros(3), np.ones(3), torch.device("cpu"))


class Brightness(nn.Module):
    """A backbone whose features are the mean brightness of a feature map and of its negative."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Conv2d(3, 2, 1, bias=False)
        self.maps.weight.data = torch.tensor([1.0, -1.0])[:, None, None, None].expand(2, 3, 1, 1).clone()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.maps(images).mean(dim=(2, 3))


def test_evidence_is_at_the_bright_square() -> None:
    net = FusionNet(Brightness(), 2, 2, TrainConfig(position=False, fusion_features=2)).eval()
    with torch.no_grad():
        for layer in (net.fuse, net.classify):
            layer.weight.copy_(torch.eye(2))
            layer.bias.zero_()
    images = np.zeros((1, 3, 48, 48), np.uint8)
    images[:, :, 8:11, 30:33] = 200
    (heat,) = HeatMaps(net, PLAIN).compute(images, np.zeros(1), np.zeros(1))
    assert heat.shape == (48, 48)
    assert heat[9, 31] == pytest.approx(1.0)
    assert heat[38, 8] == 0.0
    (other,) = HeatMaps(net, PLAIN).compute(images, np.zeros(1), np.ones(1))
    assert (other == 0).all()  # ReLU cuts off the negative feature, so nothing changes it


class Brightest(Brightness):
    """A backbone whose features are the maximum of a feature map, and the mean of its negative."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.maps(images)
        return torch.stack([maps[:, 0].amax(dim=(1, 2)), maps[:, 1].mean(dim=(1, 2))], dim=1)


def test_evidence_of_a_maximum_is_at_its_place() -> None:
    net = FusionNet(Brightest(), 2, 1, TrainConfig(position=False, fusion_features=2)).eval()
    with torch.no_grad():
        net.fuse.weight.copy_(torch.eye(2))
        net.fuse.bias.copy_(torch.tensor([0.0, 5.0]))
        net.classify.weight.fill_(1.0)
    images = np.full((1, 3, 32, 32), 100, np.uint8)
    images[:, :, 24, 8] = 200
    (heat,) = HeatMaps(net, PLAIN).compute(images, np.zeros(1), np.zeros(1))
    assert heat[24, 8] == pytest.approx(1.0)
    assert np.abs(heat[:16]).max() < 0.01


def test_evidence_against_a_class_is_negative() -> None:
    net = FusionNet(Brightness(), 2, 2, TrainConfig(position=False, fusion_features=2)).eval()
    with torch.no_grad():
        for layer, sign in ((net.fuse, 1.0), (net.classify, -1.0)):
            layer.weight.copy_(sign * torch.eye(2))
            layer.bias.zero_()
    images = np.zeros((1, 3, 48, 48), np.uint8)
    images[:, :, 8:11, 30:33] = 200
    (heat,) = HeatMaps(net, PLAIN).compute(images, np.zeros(1), np.zeros(1))
    assert heat[9, 31] == pytest.approx(-1.0)
    assert heat.max() < 0.3  # around it the slice is darker than its blur


@pytest.mark.parametrize("model", ["resnet18", "efficientnet_b3"])
def test_torchvision_models_have_maps(model: str) -> None:
    net = build_model(TrainConfig(model=model, weights="none", size_px=64), 6).eval()
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 64, 64), np.uint8)
    heat = HeatMaps(net, PLAIN).compute(images, np.array([0.1, 0.9]), np.array([0, 5]))
    assert heat.shape == (2, 64, 64)
    assert -1 <= heat.min() <= heat.max() <= 1
    assert np.abs(heat).max(axis=(1, 2)) == pytest.approx([1, 1])


def test_overlay_keeps_the_slice_where_there_is_no_heat() -> None:
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    assert (overlay(grey, np.zeros((8, 8))) == grey[..., None]).all()
    raised, lowered = overlay(grey, np.ones((8, 8))), overlay(grey, -np.ones((8, 8)))
    assert (raised[..., 0] > grey).all()
    assert (raised[..., 0] > raised[..., 2]).all()
    assert (lowered[..., 2] > lowered[..., 0]).all()
