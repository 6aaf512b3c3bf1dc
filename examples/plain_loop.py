"""Train in a plain PyTorch loop with torch's DataLoader: python examples/plain_loop.py cache.zarr [SIZE]"""

import sys

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import DataLoader
from torchvision.models import resnet18

import training


def main(path: str, size: int = 224) -> float:
    cache = training.open_cache(path)
    labelled, subset = ~np.isnan(cache.labels()).any(axis=1), cache.split(seed=0)
    datasets = {
        name: training.SliceDataset(cache, size, np.flatnonzero(labelled & (subset == name)))
        for name in ("train", "validation")
    }
    model = resnet18(num_classes=len(cache.classes))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for batch in DataLoader(datasets["train"], batch_size=32, shuffle=True, num_workers=2, drop_last=True):
        loss = binary_cross_entropy_with_logits(model(batch["image"].float() / 255), batch["label"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.inference_mode():
        losses = [
            binary_cross_entropy_with_logits(model(batch["image"].float() / 255), batch["label"])
            for batch in DataLoader(datasets["validation"], batch_size=64)
        ]
    return float(torch.stack(losses).mean())


if __name__ == "__main__":
    print(f"log loss on validation: {main(sys.argv[1], *map(int, sys.argv[2:])):.4f}")
