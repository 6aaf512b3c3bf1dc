"""Train a timm model with the slice position in its head: python examples/timm_model.py cache.zarr [SIZE]"""

import sys

import numpy as np
import timm
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

import training


class WithPosition(nn.Module):
    def __init__(self, name: str, channels: int, classes: int) -> None:
        super().__init__()
        self.backbone = timm.create_model(name, num_classes=0, in_chans=channels)
        self.head = nn.Linear(self.backbone.num_features + 1, classes)

    def forward(self, images: Tensor, z_norm: Tensor) -> Tensor:
        return self.head(torch.cat([self.backbone(images), z_norm[:, None]], dim=1))


def main(path: str, size: int = 224, name: str = "resnet10t") -> float:
    cache = training.open_cache(path)
    train = np.flatnonzero(~np.isnan(cache.labels()).any(axis=1) & (cache.split(seed=0) == "train"))
    stream = training.Stream(cache, size, train, batch_size=32, drop_last=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = WithPosition(name, len(cache.windows), len(cache.classes)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for batch in training.on_device(stream, device):
        loss = binary_cross_entropy_with_logits(model(batch.images.float() / 255, batch.z_norm), batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(loss)


if __name__ == "__main__":
    print(f"training loss: {main(sys.argv[1], *map(int, sys.argv[2:])):.4f}")
