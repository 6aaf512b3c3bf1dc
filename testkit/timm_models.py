"""Train, save, load and export timm backbones with random weights; for tests and a benchmark."""

from dataclasses import replace
from pathlib import Path

import torch

from testkit import tiny_run
from training.data.cache import open_cache
from training.library import load_model
from training.model.export import PARITY, export
from training.run.runs import open_run

# The common families, each with its smallest variant and an image size in pixels that it accepts.
COMMON = {
    "resnet18": 32,
    "resnet50": 32,
    "resnext50_32x4d": 32,
    "seresnet50": 32,
    "seresnext26d_32x4d": 32,
    "wide_resnet50_2": 32,
    "densenet121": 32,
    "efficientnet_b0": 32,
    "tf_efficientnetv2_b0": 32,
    "mobilenetv3_small_050": 32,
    "regnety_002": 32,
    "convnext_atto": 32,
    "convnextv2_atto": 32,
    "vit_tiny_patch16_224": 64,
    "deit_tiny_patch16_224": 64,
    "swin_tiny_patch4_window7_224": 64,
    "maxvit_rmlp_pico_rw_256": 64,
    "eva02_tiny_patch14_224": 56,
    "vit_small_patch14_dinov2": 56,
    "coatnet_nano_rw_224": 64,
}


def train_save_load_export(name: str, folder: Path, cache: Path, form: str = "torch") -> float:
    """Train for one epoch, load the weights and export them; return the largest difference of a probability.

    Raises:
        AssertionError: a logit of the loaded model is not finite.
        TrainingError: training or export fails.
    """
    config = tiny_run.settings(model=f"timm:{name}", size_px=COMMON[name], epochs=1, batch_size=64)
    tiny_run.train(folder / "run", cache, config)
    model = load_model(folder / "run")
    images = torch.zeros(1, 3, COMMON[name], COMMON[name], dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.isfinite(model(images, torch.full((1,), 0.5))).all()
    run = open_run(folder / "run")
    return export(replace(run), open_cache(cache), form, folder / f"model{'.pt2' if form == 'torch' else '.onnx'}")


__all__ = ["COMMON", "PARITY", "train_save_load_export"]
