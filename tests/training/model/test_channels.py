"""Test that a first convolution over more channels gives the same output as before if they are identical."""

from pathlib import Path

import numpy as np
import pytest
import torch

from training.data.neighbours import Context
from training.errors import ConfigError
from training.model.augment import Augment
from training.model.backbones import torchvision_backbone
from training.model.channels import first_convolution, fit_channels
from training.model.network import build_model, check_size
from training.run.config import TrainConfig

CHANNELS = [Context(1, (0, 1, 2)).channels(3), Context(2, (0,)).channels(3), Context(1, (0, 2)).channels(3)]


def config(**changes: object) -> TrainConfig:
    return TrainConfig(**{"model": "shufflenet_v2_x0_5", "weights": "none", "size_px": 64} | changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("model", ["resnet18", "shufflenet_v2_x0_5", "mobilenet_v3_small", "vit_b_32", "convnext_tiny"])
@pytest.mark.parametrize("channels", CHANNELS)
def test_a_stack_of_identical_slices_gives_the_features_of_the_slice(model: str, channels: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    backbone, _ = torchvision_backbone(model, imagenet=False)
    size = 224 if model == "vit_b_32" else 64
    images = torch.rand(2, 3, size, size)
    with torch.inference_mode():
        alone = backbone.eval()(images)
        fit_channels(backbone, channels)
        together = backbone(images[:, list(channels)])
    assert torch.allclose(alone, together, atol=1e-4 * float(alone.abs().max()))


@pytest.mark.parametrize("windows", [1, 2, 4])
def test_other_numbers_of_windows_give_the_features_of_three_identical_ones(windows: int) -> None:
    backbone, _ = torchvision_backbone("resnet18", imagenet=False)
    grey = torch.rand(2, 1, 64, 64)
    with torch.inference_mode():
        three = backbone.eval()(grey.expand(-1, 3, -1, -1))
        fit_channels(backbone, range(windows))
        assert first_convolution(backbone)[1].in_channels == windows
        assert torch.allclose(three, backbone(grey.expand(-1, windows, -1, -1)), atol=1e-4)


def test_weights_for_three_channels_are_converted_and_those_of_a_stack_are_used_as_is(tmp_path: Path) -> None:
    images, place = torch.rand(2, 3, 64, 64), torch.rand(2)
    narrow = build_model(config(seed=5), 6).eval()
    for name, state in (("backbone", narrow.backbone.state_dict()), ("whole", narrow.state_dict())):
        torch.save(state, tmp_path / f"{name}.pt")
        wide = build_model(config(weights=str(tmp_path / f"{name}.pt")), 6, CHANNELS[0]).eval()
        with torch.inference_mode():
            features = narrow.backbone(images), wide.backbone(images.repeat(1, 3, 1, 1))
        assert torch.allclose(*features, atol=1e-4)
    torch.save(wide.state_dict(), tmp_path / "wide.pt")
    again = build_model(config(weights=str(tmp_path / "wide.pt"), seed=9), 6, CHANNELS[0]).eval()
    stack = torch.rand(2, 9, 64, 64)
    with torch.inference_mode():
        assert torch.equal(again(stack, place), wide(stack, place))
    check_size(again, config())


def test_a_model_that_rescales_its_channels_is_rejected() -> None:
    backbone, _ = torchvision_backbone("googlenet", imagenet=False)
    backbone.transform_input = True
    with pytest.raises(ConfigError, match="three channels"):
        fit_channels(backbone, CHANNELS[0])


def test_augmentation_treats_a_stack_as_one_image_except_for_noise() -> None:
    one = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    keys = np.arange(4, dtype=np.uint64)
    mean, std = np.tile([0.2, 0.3, 0.4], 3), np.tile([0.5, 0.6, 0.7], 3)
    cpu = torch.device("cpu")
    still = Augment(config(noise_sigma=0.0), mean, std, cpu)(one.repeat(1, 3, 1, 1), keys, 0)
    alone = Augment(config(noise_sigma=0.0), mean[:3], std[:3], cpu)(one, keys, 0)
    for slice_of_stack in still.split(3, dim=1):
        assert torch.equal(slice_of_stack, alone)
    noisy = Augment(config(), mean, std, cpu)(one.repeat(1, 3, 1, 1), keys, 0)
    assert not torch.equal(noisy[:, :3], noisy[:, 3:6])
