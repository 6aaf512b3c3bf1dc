"""The head over a series: read the slices' features in order of z and correct their logits."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from training.run.config import TrainConfig

# B series, L slices of the longest, D features, K classes, W width of the head.

MOST_GAP_MM = 50.0  # farther is as far: another part of the body, or another orientation in one series
GAP_UNIT_MM = 10.0
LOGIT_UNIT = 5.0
ATTENTION_HEADS = 4


@dataclass(frozen=True)
class SeriesBatch:
    """Series of any length, padded at their ends.

    Attributes:
        features: (B, L, D) float32.
        logits: (B, L, K) float32, the slice model's.
        z_norm: (B, L) float32 in [0, 1].
        gap_mm: (B, L) float32, to the next slice toward the head, 0 at the last one.
        lengths: (B,) int64 on the CPU, from 1 on.
    """

    features: Tensor
    logits: Tensor
    z_norm: Tensor
    gap_mm: Tensor
    lengths: Tensor

    @property
    def real(self) -> Tensor:
        """(B, L) bool: where there is a slice, and no padding."""
        length = self.logits.shape[1]
        return torch.arange(length, device=self.logits.device) < self.lengths.to(self.logits.device)[:, None]


class SeriesHead(nn.Module):
    """Features, logits, position and distance of every slice -> a correction of each slice's logits.

    LayerNorm of the features; with the rest -> Linear(D + K + 2, W) -> GRU both ways, or a transformer encoder ->
    Linear(W, K), which begins at zero: an untrained head changes nothing.
    """

    def __init__(self, num_features: int, num_classes: int, config: TrainConfig) -> None:
        super().__init__()
        width = _width(config)
        self.norm = nn.LayerNorm(num_features)
        self.bring = nn.Linear(num_features + num_classes + 2, width)
        self.dropout = nn.Dropout(config.dropout)
        self.read: GruReader | TransformerReader = READERS[config.head](config)
        self.correct = nn.Linear(width, num_classes)
        nn.init.zeros_(self.correct.weight)
        nn.init.zeros_(self.correct.bias)

    def forward(self, batch: SeriesBatch) -> Tensor:
        """Return corrections (B, L, K), to be added to the slices' logits; 0 at padding."""
        brought = self.dropout(self.look(batch.features, batch.logits, batch.z_norm, batch.gap_mm))
        read = self.read(brought, batch.lengths, batch.real)
        return self.correct(self.dropout(read)) * batch.real[..., None]

    def look(self, features: Tensor, logits: Tensor, z_norm: Tensor, gap_mm: Tensor) -> Tensor:
        """Return what is known of each slice by itself, (..., W), from (..., D), (..., K), (...) and (...)."""
        gap = gap_mm[..., None].clamp(0.0, MOST_GAP_MM) / GAP_UNIT_MM
        facts = torch.cat([self.norm(features), logits / LOGIT_UNIT, z_norm[..., None], gap], dim=-1)
        return torch.relu(self.bring(facts))


def _width(config: TrainConfig) -> int:
    """W, which two directions and all attention heads divide."""
    return -(-config.head_features // 8) * 8


class GruReader(nn.Module):
    """A GRU in both directions, beside which what it reads goes past."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        width, layers = _width(config), config.head_layers
        dropout = config.dropout if layers > 1 else 0.0
        self.gru = nn.GRU(width, width // 2, layers, batch_first=True, dropout=dropout, bidirectional=True)

    def forward(self, brought: Tensor, lengths: Tensor, real: Tensor) -> Tensor:
        packed = pack_padded_sequence(brought, lengths, batch_first=True, enforce_sorted=False)
        read, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True, total_length=brought.shape[1])
        return brought + read


class TransformerReader(nn.Module):
    """A transformer encoder over slices that are told their order, and what lies beside each.

    Attention learns which slices are neighbours from their places alone, for which a few hundred series are too few: a
    convolution over three slices says it outright.

    Source: Chu et al., "Conditional positional encodings for vision transformers", ICLR 2023, for the convolution.
    """

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        width = _width(config)
        layer = nn.TransformerEncoderLayer(
            width, ATTENTION_HEADS, 2 * width, config.dropout, batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, config.head_layers, enable_nested_tensor=False)
        self.beside = nn.Conv1d(width, width, 3, padding=1)

    def forward(self, brought: Tensor, lengths: Tensor, real: Tensor) -> Tensor:
        return self.encoder(self.place(brought * real[..., None]), src_key_padding_mask=~real)

    def place(self, brought: Tensor) -> Tensor:
        """Add to (B, L, W), 0 at padding, what lies beside each slice, and its place."""
        beside = self.beside(brought.transpose(1, 2)).transpose(1, 2)
        return brought + beside + places(brought.shape[1], brought.shape[2]).to(brought)


def places(length: int, width: int) -> Tensor:
    """Return (length, width) float32 that tell the slices' order: sines and cosines of their numbers.

    Source: Vaswani et al., "Attention is all you need", NeurIPS 2017, section 3.5.
    """
    number = torch.arange(length)[:, None]
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000) / width))
    return torch.stack([torch.sin(number * rates), torch.cos(number * rates)], dim=2).flatten(1)


READERS: dict[str, type[GruReader] | type[TransformerReader]] = {"gru": GruReader, "transformer": TransformerReader}
