"""Train a MONAI network with MONAI's transforms: python examples/monai_network.py cache.zarr [SIZE]"""

import sys

import numpy as np
import torch
from monai.networks.nets import DenseNet
from monai.transforms import Compose, RandFlip, RandGaussianNoise, RandRotate, ScaleIntensityRange
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import DataLoader

import training

TRANSFORM = Compose(
    [
        ScaleIntensityRange(0, 255, 0, 1),
        RandFlip(prob=0.5, spatial_axis=1),
        RandRotate(range_x=0.26, prob=0.5, padding_mode="zeros"),
        RandGaussianNoise(prob=0.5, std=0.02),
    ]
)


def main(path: str, size: int = 224) -> float:
    cache = training.open_cache(path)
    train = np.flatnonzero(~np.isnan(cache.labels()).any(axis=1) & (cache.split(seed=0) == "train"))
    dataset = training.SliceDataset(cache, size, train, transform=TRANSFORM)
    model = DenseNet(2, len(cache.windows), len(cache.classes), init_features=32, growth_rate=8, block_config=(2, 2, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for batch in DataLoader(dataset, batch_size=32, shuffle=True, num_workers=2, drop_last=True):
        loss = binary_cross_entropy_with_logits(model(batch["image"].as_tensor()), batch["label"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(loss)


if __name__ == "__main__":
    print(f"training loss: {main(sys.argv[1], *map(int, sys.argv[2:])):.4f}")
