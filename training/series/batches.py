"""Cut stored features into series in order of z, and gather series of any length into batches."""

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
    """The placed slices of some series, series after series, from foot to head.

    Attributes:
        lines: (n,) int64 lines of the cache's table.
        starts: (T + 1,) int64: series t has the slices starts[t]:starts[t + 1].
        keys: (T,) uint64, one a series: the key of its lowest slice.
        features: (m, D) float16, of these slices and maybe of others, in memory or in a file.
        places: (n,) int64, where in `features` each slice's are.
        logits: (n, K) float32. z_norm, gap_mm: (n,) float32.
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
        """Gather series into a batch.

        Returns:
            the batch, and (B, L) int64 which slice of the set each place shows, -1 at padding.
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
    """Return the series, whole, that have any of `lines`."""
    count = np.diff(order.starts)
    series = np.repeat(np.arange(len(count)), count)
    wanted = np.zeros(len(count), bool)
    wanted[series[np.isin(order.lines, lines)]] = True
    kept = wanted[series]
    return SeriesOrder(order.lines[kept], np.append(0, np.cumsum(count[wanted])), order.z_mm[kept])


def gather(cache: Cache, order: SeriesOrder, found: Features) -> SeriesSet:
    """Put slices in the order of their series; their features stay where they are.

    Args:
        found: of all slices of `order`, and maybe of others.
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
    """Return the distance of each slice to the next one toward the head, (n,) float32; 0 at the last of a series."""
    gap_mm = np.diff(order.z_mm, append=order.z_mm[-1:])
    gap_mm[order.starts[1:] - 1] = 0
    return gap_mm.astype(np.float32)


def in_blocks(order: SeriesOrder, most: int) -> Iterator[SeriesOrder]:
    """Yield the series in their order, some at a time: whole ones, of `most` slices together where they are shorter."""
    begin = 0
    while begin < len(order.starts) - 1:
        end = max(begin + 1, int(np.searchsorted(order.starts, order.starts[begin] + most, side="right")) - 1)
        of = slice(order.starts[begin], order.starts[end])
        yield SeriesOrder(order.lines[of], order.starts[begin : end + 1] - order.starts[begin], order.z_mm[of])
        begin = end


def series_of(cache: Cache, lines: np.ndarray) -> SeriesOrder:
    """Return the series of a cache, whole, that have any of `lines`."""
    return choose_series(order_series(cache), lines)
