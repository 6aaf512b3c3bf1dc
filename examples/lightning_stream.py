"""Train with Lightning on a stream, without workers: python examples/lightning_stream.py cache.zarr [SIZE]"""

import sys

import lightning
import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from torchvision.models import resnet18

import training


class Classifier(lightning.LightningModule):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.net = resnet18(num_classes=classes)

    def training_step(self, batch: training.Batch, number: int) -> torch.Tensor:
        loss = binary_cross_entropy_with_logits(self.net(batch.images.float() / 255), batch.labels)
        self.log("loss", loss, batch_size=len(batch.images))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def main(path: str, size: int = 224, epochs: int = 2) -> float:
    cache = training.open_cache(path)
    train = np.flatnonzero(~np.isnan(cache.labels()).any(axis=1) & (cache.split(seed=0) == "train"))
    # With several GPUs, each process gets its part of every batch. Each epoch has a new order.
    stream = training.Stream(cache, size, train, batch_size=32, seed=0, drop_last=True)
    trainer = lightning.Trainer(max_epochs=epochs, logger=False, enable_checkpointing=False, log_every_n_steps=1)
    trainer.fit(Classifier(len(cache.classes)), stream)
    return float(trainer.callback_metrics["loss"])


if __name__ == "__main__":
    print(f"training loss: {main(sys.argv[1], *map(int, sys.argv[2:])):.4f}")
