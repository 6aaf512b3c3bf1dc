"""What a task is given beside its job, and what it gives back."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from pipeline.cache.paths import Cache
from pipeline.cache.shards import Codec
from pipeline.dicom.rejects import REJECT_CODES
from pipeline.planning.catalog import Reading, Window
from pipeline.planning.jobs import HandedBack
from pipeline.source.sources import Source


@dataclass(frozen=True, slots=True)
class Context:
    """What every task of a build needs; sent to a worker with each task, so it stays small.

    Attributes:
        token: of the lock; a task publishes nothing once another builder holds the cache.
        codecs: compressor of each array, by the array's name.
    """

    source: Source
    cache: Cache
    token: str
    reading: Reading
    reading_fingerprint: str
    patient_key: bytes | None
    windows: tuple[Window, ...]
    rows_per_shard: int
    codecs: dict[str, Codec]


@dataclass(slots=True)
class ShardResult:
    """What a task tells the builder; a few hundred bytes.

    Attributes:
        failed: files and frames that should have given a slice and did not.
        other_files: files and frames that are no slices, and need not be.
        handed_back: files with more frames than fitted.
        vanished: files that were gone when they were to be read; the shard is not published.
        changed: files that no longer have the content that their rows were built from; as `vanished`.
    """

    shard: int
    slices: int = 0
    failed: int = 0
    other_files: int = 0
    bytes_written: int = 0
    seconds: float = 0.0
    handed_back: list[HandedBack] = field(default_factory=list)
    vanished: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)


def count_rejects(codes: Iterable[str]) -> tuple[int, int]:
    """How many of these codes stand for a failure, and how many for something that is no slice."""
    failed = [REJECT_CODES.get(code, ("failed", ""))[0] == "failed" for code in codes]
    return sum(failed), len(failed) - sum(failed)
