"""Test the backbone for small images: its features, its cost, and the resolution of its maps."""

import torch
from torch import nn

from training.model.network import build_model
from training.model.small import SmallResNet
from training.run.config import TrainConfig

SMALL = TrainConfig(model="small_resnet", weights="none", size_px=96)


def multiplications(net, size):
    total = 0

    def count(module, _, output):
        nonlocal total
        total += output[0].numel() * module.weight[0].numel()

    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    with torch.no_grad():
        net.eval()(torch.zeros(1, 3, size, size))
    return total


def test_it_takes_an_eighth_of_resnet18s_multiplications():
    from torchvision.models import resnet18

    assert multiplications(SmallResNet(), 96) < multiplications(resnet18(), 96) / 7


def test_features_are_mean_and_maximum_of_maps_at_an_eighth_of_the_side():
    torch.manual_seed(0)
    net = SmallResNet().eval()
    images = torch.rand(2, 3, 96, 64)
    maps, features = net.features(images), net(images)
    assert maps.shape == (2, 96, 12, 8)
    assert features.shape == (2, SmallResNet.num_features)
    assert torch.allclose(features[:, :96], maps.flatten(2).mean(2), atol=1e-6)
    assert torch.allclose(features[:, 96:], maps.flatten(2).max(2).values)


def test_it_sees_the_position_of_a_bleed_but_not_its_side():
    torch.manual_seed(0)
    stem = SmallResNet().eval().features[0]
    shown = stem(torch.zeros(1, 3, 96, 96)).detach()
    assert torch.allclose(shown, shown.flip(3), atol=1e-6)
    assert (shown[..., 24, 2] - shown[..., 24, 24]).abs().max() > 0.05
    assert (shown[..., 2, 24] - shown[..., 45, 24]).abs().max() > 0.05


def test_a_run_builds_it():
    net = build_model(SMALL, 6).eval()
    assert net(torch.rand(2, 3, 96, 96), torch.rand(2)).shape == (2, 6)


def test_every_weight_learns():
    torch.manual_seed(0)
    net = build_model(SMALL, 6)
    for module in net.modules():  # the last norm of each block starts at 0, which blocks gradients to earlier layers
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    net(torch.rand(4, 3, 96, 96), torch.rand(4)).square().sum().backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in net.parameters())
