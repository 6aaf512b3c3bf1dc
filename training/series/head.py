"""The head over a series: it takes the features of all slices in order of z, and corrects their logits."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from training.run.config import TrainConfig

# Sizes: B series, L slices of the longest, D features, K classes, W width of the head.

MAX_GAP_MM = 50.0  # larger gaps are equivalent: another part of the body, or another orientation in one series
GAP_UNIT_MM = 10.0
LOGIT_UNIT = 5.0
ATTENTION_HEADS = 4


@dataclass(frozen=True)
class SeriesBatch:
    """Series of any length, padded with zeros at the end.

    Attributes:
        features: (B, L, D) float32.
        logits: (B, L, K) float32, of the slice model.
        z_norm: (B, L) float32 in [0, 1].
        gap_mm: (B, L) float32, distance to the next slice towards the head, 0 for the last one.
        lengths: (B,) int64 on the CPU, at least 1.
    """

    features: Tensor
    logits: Tensor
    z_norm: Tensor
    gap_mm: Tensor
    lengths: Tensor

    @property
    def real(self) -> Tensor:
        """Mask of slices, (B, L) bool; false for padding."""
        length = self.logits.shape[1]
        return torch.arange(length, device=self.logits.device) < self.lengths.to(self.logits.device)[:, None]


class SeriesHead(nn.Module):
    """A network from features, logits, position and distance of all slices to a correction of each slice's logits.

    LayerNorm of the features; with the other inputs -> Linear(D + K + 2, W) -> bidirectional GRU or transformer encoder
    -> Linear(W, K). The last layer is initialised with zeros, so that an untrained head changes nothing.
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
        """Return corrections (B, L, K) float32, to be added to the slices' logits; 0 for padding."""
        slices = self.dropout(self.embed(batch.features, batch.logits, batch.z_norm, batch.gap_mm))
        read = self.read(slices, batch.lengths, batch.real)
        return self.correct(self.dropout(read)) * batch.real[..., None]

    def embed(self, features: Tensor, logits: Tensor, z_norm: Tensor, gap_mm: Tensor) -> Tensor:
        """Return an embedding of each slice by itself, (..., W), from (..., D), (..., K), (...) and (...)."""
        gap = gap_mm[..., None].clamp(0.0, MAX_GAP_MM) / GAP_UNIT_MM
        facts = torch.cat([self.norm(features), logits / LOGIT_UNIT, z_norm[..., None], gap], dim=-1)
        return torch.relu(self.bring(facts))


def _width(config: TrainConfig) -> int:
    """Return W, a multiple of 8, so that two directions and the attention heads divide it."""
    return -(-config.head_features // 8) * 8


class GruReader(nn.Module):
    """A bidirectional GRU with a residual connection."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        width, layers = _width(config), config.head_layers
        dropout = config.dropout if layers > 1 else 0.0
        self.gru = nn.GRU(width, width // 2, layers, batch_first=True, dropout=dropout, bidirectional=True)

    def forward(self, slices: Tensor, lengths: Tensor, real: Tensor) -> Tensor:
        packed = pack_padded_sequence(slices, lengths, batch_first=True, enforce_sorted=False)
        read, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True, total_length=slices.shape[1])
        return slices + read


class TransformerReader(nn.Module):
    """A transformer encoder, preceded by positional encodings and a convolution over neighbouring slices.

    A few hundred series are too few for attention to learn from positional encodings alone which slices are neighbours;
    the convolution over three slices gives it this information.

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

    def forward(self, slices: Tensor, lengths: Tensor, real: Tensor) -> Tensor:
        return self.encoder(self.with_neighbours(slices * real[..., None]), src_key_padding_mask=~real)

    def with_neighbours(self, slices: Tensor) -> Tensor:
        """Return (B, L, W), 0 for padding, plus the convolution over neighbours and the positional encodings."""
        beside = self.beside(slices.transpose(1, 2)).transpose(1, 2)
        return slices + beside + positions(slices.shape[1], slices.shape[2]).to(slices)


def positions(length: int, width: int) -> Tensor:
    """Return positional encodings, (length, width) float32: sines and cosines of the slices' numbers.

    Source: Vaswani et al., "Attention is all you need", NeurIPS 2017, section 3.5.
    """
    number = torch.arange(length)[:, None]
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000) / width))
    return torch.stack([torch.sin(number * rates), torch.cos(number * rates)], dim=2).flatten(1)


READERS: dict[str, type[GruReader] | type[TransformerReader]] = {"gru": GruReader, "transformer": TransformerReader}
