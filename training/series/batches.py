"""Series of stored features in order of z, and batches of series of any length."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from training.data.cache import Cache
from training.data.neighbours import SeriesOrder, order_series
from training.series.features import Features
from training.series.head import SeriesBatch


@dataclass(frozen=True)
class SeriesSet:
    """The slices of T series that have a z_mm, one series after another, from foot to head.

    Attributes:
        lines: (n,) int64 lines of the cache's table.
        starts: (T + 1,) int64; series t has the slices starts[t]:starts[t + 1].
        keys: (T,) uint64, the key of each series' lowest slice.
        features: (m, D) float16, of these and possibly other slices, in memory or in a file.
        places: (n,) int64, the index of each slice in `features`.
        logits: (n, K) float32, of the slice model.
        z_norm: (n,) float32 in [0, 1].
        gap_mm: (n,) float32, distance to the next slice towards the head, 0 for the last slice of a series.
    """

    lines: np.ndarray
    starts: np.ndarray
    keys: np.ndarray
    features: np.ndarray
    places: np.ndarray
    logits: np.ndarray
    z_norm: np.ndarray
    gap_mm: np.ndarray

    def __len__(self) -> int:
        return len(self.keys)

    def batch(self, series: np.ndarray, device: torch.device) -> tuple[SeriesBatch, np.ndarray]:
        """Return the batch of some series.

        Args:
            series: (B,) int64 indices of series.
            device: device of the batch; `lengths` stays on the CPU.

        Returns:
            The batch, and (B, L) int64, the slice of the set at each place, -1 for padding.
        """
        begins, lengths = self.starts[series], np.diff(self.starts)[series]
        numbers = np.arange(lengths.max())
        which = np.where(numbers < lengths[:, None], begins[:, None] + numbers, -1)
        padding = which < 0

        def padded(values: np.ndarray, places: np.ndarray = which) -> torch.Tensor:
            taken = values[places].astype(np.float32)
            taken[padding] = 0
            return torch.from_numpy(taken).to(device)

        batch = SeriesBatch(
            features=padded(self.features, self.places[which]),
            logits=padded(self.logits),
            z_norm=padded(self.z_norm),
            gap_mm=padded(self.gap_mm),
            lengths=torch.from_numpy(lengths),
        )
        return batch, which


def choose_series(order: SeriesOrder, lines: np.ndarray) -> SeriesOrder:
    """Return the complete series that contain any of `lines`."""
    count = np.diff(order.starts)
    series = np.repeat(np.arange(len(count)), count)
    wanted = np.zeros(len(count), bool)
    wanted[series[np.isin(order.lines, lines)]] = True
    kept = wanted[series]
    return SeriesOrder(order.lines[kept], np.append(0, np.cumsum(count[wanted])), order.z_mm[kept])


def gather(cache: Cache, order: SeriesOrder, found: Features) -> SeriesSet:
    """Return the slices in the order of their series, without copying the features.

    Args:
        cache: the cache of the slices.
        order: the series.
        found: features of all slices of `order`, and possibly of others.
    """
    places = np.searchsorted(found.lines, order.lines)
    return SeriesSet(
        lines=order.lines,
        starts=order.starts,
        keys=cache.keys[order.lines[order.starts[:-1]]],
        features=np.asarray(found.features),
        places=places,
        logits=found.logits[places],
        z_norm=cache.table["z_norm"].to_numpy(np.float32)[order.lines],
        gap_mm=gaps_mm(order),
    )


def gaps_mm(order: SeriesOrder) -> np.ndarray:
    """Return the distance from each slice to the next towards the head, (n,) float32; 0 for the last of a series."""
    gap_mm = np.diff(order.z_mm, append=order.z_mm[-1:])
    gap_mm[order.starts[1:] - 1] = 0
    return gap_mm.astype(np.float32)


def in_blocks(order: SeriesOrder, max_slices: int) -> Iterator[SeriesOrder]:
    """Yield blocks of complete series, of up to `max_slices` slices; a longer series is a block of its own."""
    begin = 0
    while begin < len(order.starts) - 1:
        end = max(begin + 1, int(np.searchsorted(order.starts, order.starts[begin] + max_slices, side="right")) - 1)
        of = slice(order.starts[begin], order.starts[end])
        yield SeriesOrder(order.lines[of], order.starts[begin : end + 1] - order.starts[begin], order.z_mm[of])
        begin = end


def series_of(cache: Cache, lines: np.ndarray) -> SeriesOrder:
    """Return the complete series of a cache that contain any of `lines`."""
    return choose_series(order_series(cache), lines)
