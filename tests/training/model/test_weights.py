"""Test that foreign weight files are recognised by their content, and how they are described."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision import models

from training.errors import ConfigError, RunError
from training.model.channels import RGB
from training.model.network import build_model, load_run_weights
from training.model.weights import best_match
from training.run.config import TrainConfig

SMALL = {"model": "resnet18", "weights": "none", "size_px": 32}


@pytest.fixture(scope="module")
def served() -> models.ResNet:
    torch.manual_seed(3)
    return models.resnet18(weights=None, num_classes=7)


def rad_imagenet(net: models.ResNet) -> nn.Module:
    """Return a network with the names in RadImageNet's files: an nn.Sequential without the classifier."""
    holder = nn.Module()
    holder.backbone = nn.Sequential(*list(net.children())[:-1])
    return holder


def lightning(net: models.ResNet) -> dict:
    """Return a checkpoint in the form that Lightning writes."""
    state = {f"net.encoder.{name}": tensor for name, tensor in net.state_dict().items()}
    return {"epoch": 3, "pytorch-lightning_version": "2.5", "optimizer_states": [], "state_dict": state}


FILES = {
    "another number of classes": lambda net: net.state_dict(),
    "DataParallel": lambda net: {f"module.{name}": tensor for name, tensor in net.state_dict().items()},
    "RadImageNet": lambda net: rad_imagenet(net).state_dict(),
    "Lightning": lightning,
    "an old file without counters": lambda net: {
        name: tensor for name, tensor in net.state_dict().items() if not name.endswith("num_batches_tracked")
    },
}


@pytest.mark.parametrize("kind", FILES)
def test_backbone_is_found_in_the_file(served: models.ResNet, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "weights.pth"
    torch.save(FILES[kind](served), path)
    net = build_model(TrainConfig(**(SMALL | {"weights": str(path)})), 6)
    for name, tensor in net.backbone.named_parameters():
        assert torch.equal(tensor, served.get_parameter(name)), name
    assert net.origin.startswith(f"{path}: 1")
    assert " 0 missing and initialised" in net.origin
    assert ("2 left out (" in net.origin) == (kind != "RadImageNet")


def test_a_network_for_other_classes_keeps_a_random_last_layer(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    before = build_model(TrainConfig(**SMALL, seed=4), 3)
    torch.save(before.state_dict(), path)
    net = build_model(TrainConfig(**(SMALL | {"weights": str(path)})), 6)
    assert torch.equal(net.fuse.weight, before.fuse.weight)
    assert "2 left out (classify.weight, classify.bias)" in net.origin
    assert "2 missing and initialised (classify.weight, classify.bias)" in net.origin


def test_the_error_for_another_networks_file_lists_its_content(tmp_path: Path) -> None:
    torch.save(models.resnet50(weights=None).state_dict(), tmp_path / "weights.pth")
    with pytest.raises(ConfigError, match=r"another network: .* tensors are missing, .* it has conv1.weight"):
        build_model(TrainConfig(**(SMALL | {"weights": str(tmp_path / "weights.pth")})), 6)


def test_weights_of_a_run_must_match_to_the_last_tensor(served: models.ResNet, tmp_path: Path) -> None:
    torch.save(served.state_dict(), tmp_path / "weights.pth")
    with pytest.raises(RunError, match="another network"):
        load_run_weights(TrainConfig(**SMALL), 6, tmp_path / "weights.pth")


def test_the_first_kernel_is_converted_to_other_windows(served: models.ResNet, tmp_path: Path) -> None:
    torch.save(rad_imagenet(served).state_dict(), tmp_path / "weights.pth")
    net = build_model(TrainConfig(**(SMALL | {"weights": str(tmp_path / "weights.pth")})), 6, (0, 1, 2, 3))
    mean = served.conv1.weight.mean(1) * 3 / 4
    torch.testing.assert_close(net.backbone.conv1.weight[:, 3], mean)


def test_a_model_that_needs_versions_can_load_a_file_without_them(tmp_path: Path) -> None:
    """MNASNet, from torchvision's published file and from a file with only tensors."""
    served = models.mnasnet0_5(weights=None).state_dict()
    for number, state in enumerate((served, dict(served))):
        path = tmp_path / f"{number}.pth"
        torch.save(state, path)
        net = build_model(TrainConfig(**(SMALL | {"model": "mnasnet0_5", "weights": str(path)})), 6)
        assert torch.equal(net.backbone.layers[0].weight, served["layers.0.weight"])


PUBLISHED = {
    "DenseNet": (
        lambda: models.DenseNet(growth_rate=4, block_config=(2, 2), num_init_features=8),
        {"norm1": "norm.1", "conv1": "conv.1", "norm2": "norm.2", "conv2": "conv.2"},
    ),
    "vision transformer": (
        lambda: models.VisionTransformer(32, 16, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32),
        {"mlp.0": "mlp.linear_1", "mlp.3": "mlp.linear_2"},
    ),
}


@pytest.mark.parametrize("kind", PUBLISHED)
def test_published_files_with_old_names_are_read(kind: str) -> None:
    make, old = PUBLISHED[kind]
    served, net = make(), make()

    def before(name: str) -> str:
        for today, then in old.items():
            if "denselayer" in name or "mlp" in name:
                name = name.replace(f".{today}.", f".{then}.")
        return name

    state = {f"module.{before(name)}": tensor for name, tensor in served.state_dict().items()}
    assert {name.removeprefix("module.") for name in state} != set(net.state_dict())
    match = best_match(net, state, RGB)
    assert not match.missing
    assert not match.left_out
    for name, tensor in served.state_dict().items():
        assert torch.equal(match.used[name], tensor), name
