"""The inputs that all tasks of a build share, and the result of a task."""

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
    """The inputs that all tasks of a build share; sent to a worker with each task, so it stays small.

    Attributes:
        token: token of the lock; a task publishes nothing once another builder holds the cache.
        reading_fingerprint: fingerprint of the reading settings, for the done-records.
        patient_key: the key that patient ids are hashed with, None if they are kept.
        codecs: the compressor of each array, by the array's name.
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
    """What a task returns to the builder; a few hundred bytes.

    Attributes:
        slices: number of slices stored.
        failed: number of files and frames that should have given a slice and did not.
        other_files: number of files and frames that are not slices and need not be.
        bytes_written: size of the image shards, bytes.
        seconds: duration of the task.
        handed_back: files with more frames than the shard had rows left.
        vanished: files that no longer existed when they were to be read; the shard is then not published.
        changed: files whose content is no longer that of their rows; the shard is then not published.
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
    """Return how many of these reject codes stand for failures, and how many for files that are not slices."""
    failed = [REJECT_CODES.get(code, ("failed", ""))[0] == "failed" for code in codes]
    return sum(failed), len(failed) - sum(failed)
