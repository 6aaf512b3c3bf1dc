"""Test the network, its widths, and the ways to load weights into it."""

import urllib.error

import pytest
import torch
from safetensors.torch import save_file
from torchvision import models

from training.errors import ConfigError, RunError
from training.model.backbones import torchvision_backbone
from training.model.network import build_model, check_size, load_run_weights
from training.run.config import TrainConfig

SMALL = TrainConfig(model="shufflenet_v2_x0_5", weights="none", size_px=32)


def small(**changes):
    return TrainConfig(**(vars(SMALL) | changes))


@pytest.mark.parametrize(
    ("name", "features"),
    [
        ("resnet50", 2048),
        ("efficientnet_b3", 1536),
        ("densenet121", 1024),
        ("convnext_tiny", 768),
        ("swin_t", 768),
        ("squeezenet1_1", 512),
        ("mobilenet_v3_small", 576),
        ("googlenet", 1024),
    ],
)
def test_the_feature_width_is_that_of_the_backbone(name, features):
    backbone, width = torchvision_backbone(name, imagenet=False)
    assert width == features
    with torch.inference_mode():
        for training in (True, False):
            assert backbone.train(training)(torch.rand(2, 3, 64, 64)).shape == (2, features)


def test_features_are_the_input_of_torchvisions_own_classifier():
    torch.manual_seed(0)
    whole = models.resnet18(weights=None).eval()
    backbone, _ = torchvision_backbone("resnet18", imagenet=False)
    backbone.load_state_dict({name: tensor for name, tensor in whole.state_dict().items() if not name.startswith("fc")})
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(whole.fc(backbone.eval()(images)), whole(images))


def test_resnet50_has_the_widths_of_the_design():
    net = build_model(TrainConfig(weights="none"), 6)
    assert (net.position.in_features, net.position.out_features) == (1, 64)
    assert (net.fuse.in_features, net.fuse.out_features) == (2112, 512)
    assert (net.classify.in_features, net.classify.out_features) == (512, 6)
    assert net.dropout.p == 0.3


def test_widths_and_dropout_are_settings():
    net = build_model(small(position_features=5, fusion_features=7, dropout=0.1), 3)
    assert net.position.out_features == 5
    assert net.fuse.in_features == 1024 + 5
    assert (net.classify.in_features, net.classify.out_features) == (7, 3)
    assert net.dropout.p == 0.1


def test_the_position_reaches_the_logits_unless_it_is_off():
    images = torch.rand(2, 3, 32, 32)
    low, high = torch.zeros(2), torch.ones(2)
    with_position, without = (build_model(small(position=on), 6).eval() for on in (True, False))
    assert not torch.equal(with_position(images, low), with_position(images, high))
    assert torch.equal(without(images, low), without(images, high))
    assert without.fuse.in_features == 1024


def test_random_weights_depend_on_the_seed_and_do_not_touch_the_generator():
    before = torch.random.get_rng_state()
    first, again, other = (build_model(small(seed=seed), 6).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["classify.weight"], other["classify.weight"])


def test_an_unknown_model_suggests_the_nearest():
    with pytest.raises(ConfigError, match="nearest: resnet50, ") as error:
        build_model(small(model="resnet_50"), 6)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "size_px", "fits"), [("alexnet", 32, False), ("alexnet", 64, True), ("vit_b_16", 256, False)]
)
def test_a_size_that_a_model_does_not_accept_is_reported(name, size_px, fits):
    config = small(model=name, size_px=size_px)
    net = build_model(config, 6)
    if fits:
        check_size(net, config)
    else:
        with pytest.raises(
            ConfigError, match=f"--model {name}: does not take images of {size_px} px .*give another --size"
        ):
            check_size(net, config)


def test_without_network_both_remedies_are_suggested(monkeypatch):
    def unreachable(*_arguments, **_named):
        raise urllib.error.URLError("Temporary failure in name resolution")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", unreachable, raising=False)
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", unreachable)
    with pytest.raises(ConfigError, match="--weights none, or --weights FILE") as error:
        build_model(small(weights="imagenet"), 6)
    assert "\n" not in str(error.value)


def test_imagenet_weights_come_from_torchvision(monkeypatch):
    served = models.shufflenet_v2_x0_5(weights=None).state_dict()
    asked = []

    def serve(url, *_arguments, **_named):
        asked.append(url)
        return served

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", serve)
    net = build_model(small(weights="imagenet"), 6)
    assert asked == [models.ShuffleNet_V2_X0_5_Weights.DEFAULT.url]
    for name, tensor in net.backbone.state_dict().items():
        assert torch.equal(tensor, served[name])


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kind", ["torchvision", "headless", "fusion"])
def test_weights_from_a_file(tmp_path, suffix, kind):
    torch.manual_seed(5)
    if kind == "torchvision":
        state = models.shufflenet_v2_x0_5(weights=None).state_dict()
    elif kind == "headless":
        state = torchvision_backbone("shufflenet_v2_x0_5", imagenet=False)[0].state_dict()
    else:
        state = build_model(small(seed=9), 6).state_dict()
    path = tmp_path / f"weights{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    net = build_model(small(weights=str(path)), 6)
    loaded = net.state_dict() if kind == "fusion" else net.backbone.state_dict()
    for name, tensor in loaded.items():
        assert torch.equal(tensor, state[name]), name


def test_weights_that_do_not_fit_are_reported(tmp_path):
    path = tmp_path / "weights.pth"
    with pytest.raises(ConfigError, match="no such file"):
        build_model(small(weights=str(path)), 6)
    path.write_bytes(b"not a state dict")
    with pytest.raises(ConfigError, match="cannot be read as weights"):
        build_model(small(weights=str(path)), 6)
    torch.save([1, 2], path)
    with pytest.raises(ConfigError, match="is not a state dict"):
        build_model(small(weights=str(path)), 6)
    torch.save(models.squeezenet1_1(weights=None).state_dict(), path)
    with pytest.raises(ConfigError, match=r"of another network: .* tensors are missing"):
        build_model(small(weights=str(path)), 6)


def test_code_in_a_weights_file_does_not_run(tmp_path):
    class Malicious:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"fc.weight": Malicious()}, tmp_path / "weights.pth")
    with pytest.raises(ConfigError, match="cannot be read as weights"):
        build_model(small(weights=str(tmp_path / "weights.pth")), 6)
    assert not (tmp_path / "ran").exists()


def test_a_run_without_weights_is_reported(tmp_path):
    with pytest.raises(RunError, match="train run --resume"):
        load_run_weights(SMALL, 6, tmp_path / "weights.safetensors")


@pytest.mark.parametrize(
    ("error", "weights", "said"),
    [
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), "none", "--model resnet18: cannot be built"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), "imagenet", "--model resnet18: cannot be built"),
        (
            RuntimeError("invalid hash value (expected f, got 0)"),
            "imagenet",
            "weights of resnet18 could not be fetched",
        ),
        (urllib.error.URLError("no network"), "imagenet", "weights of resnet18 could not be fetched"),
    ],
)
def test_errors_about_weights_mention_only_the_weights(monkeypatch, error, weights, said):
    def fails(*_arguments, **_named):
        raise error

    monkeypatch.setattr(models, "get_model", fails)
    with pytest.raises(ConfigError, match=said) as caught:
        torchvision_backbone("resnet18", imagenet=weights == "imagenet")
    assert "\n" not in str(caught.value)
