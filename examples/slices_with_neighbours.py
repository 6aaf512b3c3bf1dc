"""Train on slices with neighbours (2.5D): python examples/slices_with_neighbours.py cache.zarr [SIZE] [NEIGHBOURS]"""

import sys

import numpy as np
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import DataLoader
from torchvision.models import resnet18

import training


def main(path: str, size: int = 224, neighbours: int = 1) -> float:
    cache = training.open_cache(path)
    train = np.flatnonzero(~np.isnan(cache.labels()).any(axis=1) & (cache.split(seed=0) == "train"))
    # An image has the slices below, the slice and the slices above as channels, each with all windows of the cache.
    dataset = training.SliceDataset(cache, size, train, context=neighbours)
    channels = (2 * neighbours + 1) * len(cache.windows)
    model = resnet18(num_classes=len(cache.classes))
    model.conv1 = nn.Conv2d(channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for batch in DataLoader(dataset, batch_size=32, shuffle=True, num_workers=2, drop_last=True):
        loss = binary_cross_entropy_with_logits(model(batch["image"].float() / 255), batch["label"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(loss)


if __name__ == "__main__":
    print(f"training loss: {main(sys.argv[1], *map(int, sys.argv[2:])):.4f}")
