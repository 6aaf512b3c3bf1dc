"""Test backbones of timm: features, channels, size, licence, training and export."""

from pathlib import Path

import pytest
import timm
import torch

from testkit.fake_cache import write_cache
from testkit.timm_models import PARITY, train_save_load_export
from training.errors import ConfigError
from training.model.backbones import describe_pretrained
from training.model.network import build_model
from training.run.config import TrainConfig


def config(**changes: object) -> TrainConfig:
    return TrainConfig(**({"weights": "none", "size_px": 32} | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "size_px"), [("convnext_atto", 32), ("vit_tiny_patch16_224", 48)])
def test_a_model_of_timm_trains_loads_and_exports(name: str, size_px: int, tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache.zarr", patients=6, slices=4, sizes=(32, 64))
    assert train_save_load_export(name, tmp_path, cache.path) < PARITY


def test_features_are_the_pooled_features_of_timm() -> None:
    net = build_model(config(model="timm:resnet18"), 6).eval()
    reference = timm.create_model("resnet18", num_classes=3)
    reference.load_state_dict(net.backbone.state_dict(), strict=False)
    images = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        expected = reference.eval().forward_head(reference.forward_features(images), pre_logits=True)
        torch.testing.assert_close(net.backbone(images), expected)
    assert net.fuse.in_features == 512 + 64


def test_a_transformer_has_the_size_of_the_run_and_the_channels_of_the_cache() -> None:
    net = build_model(config(model="timm:vit_tiny_patch16_224", size_px=48), 6, channels=(0, 1, 2, 3)).eval()
    with torch.inference_mode():
        assert net(torch.rand(1, 4, 48, 48), torch.zeros(1)).shape == (1, 6)


def test_weights_are_described_with_their_origin_and_licence() -> None:
    assert describe_pretrained("timm:resnet50") == "timm:resnet50.a1_in1k, timm/resnet50.a1_in1k; licence apache-2.0"
    text = describe_pretrained("timm:convnext_tiny.in12k_ft_in1k")
    assert text == "timm:convnext_tiny.in12k_ft_in1k, timm/convnext_tiny.in12k_ft_in1k; licence apache-2.0"


def test_unknown_names_and_unreachable_weights_are_errors_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="nearest: timm:resnet50,"):
        build_model(config(model="timm:resnet_50"), 6)

    def unreachable(*_: object, **__: object) -> None:
        raise OSError("Temporary failure in name resolution")

    monkeypatch.setattr("timm.models._builder.load_pretrained", unreachable)
    with pytest.raises(ConfigError, match="--weights none, or --weights FILE") as error:
        build_model(config(model="timm:resnet18", weights="imagenet"), 6)
    assert "\n" not in str(error.value)
