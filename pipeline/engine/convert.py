"""Build one shard, which is what a worker runs: files in, one shard of each array and a done-record out."""

import contextlib
import dataclasses
import errno
import functools
import platform
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import xxhash

from pipeline import kernel
from pipeline.cache.done_records import encode_record, encode_record_copy, read_record
from pipeline.cache.drafts import Drafts
from pipeline.cache.ledger import UNKNOWN_TIME, UNREAD
from pipeline.cache.lock import holds_lock
from pipeline.cache.paths import Cache
from pipeline.cache.shard_record import FileLine, PlacedSlice, RejectLine, ShardRecord, StoredImages
from pipeline.cache.shards import Codec, ShardWriter, encode_sums, read_shard, sums_of
from pipeline.dicom.read import Slices, read_slices
from pipeline.dicom.records import Reject, Slice, SliceRecord, Unit
from pipeline.dicom.rules import REJECT_CODES
from pipeline.errors import CacheError, SourceError
from pipeline.planning.catalog import Reading, Window
from pipeline.planning.plan import HandedBack, ShardJob
from pipeline.source.contents import certain
from pipeline.source.reading import reading
from pipeline.source.sources import Source

# What a file system that has been unmounted, or whose server is gone, answers.
LOST_SOURCE = {
    errno.ENODEV,
    errno.ENOTCONN,
    errno.ENXIO,
    errno.ESHUTDOWN,
    errno.EHOSTDOWN,
    errno.ESTALE,
    errno.ETIMEDOUT,
}
LIBRARIES = ("ich-cache", "pydicom", "numpy", "numba", "numcodecs", "imagecodecs")


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


def build_shard(context: Context, job: ShardJob, begin: Callable[[int], object] = lambda slot: None) -> ShardResult:
    """Read the job's files, write its shard of every array, then the done-record.

    Args:
        begin: called with a file's slot before the file is touched.

    Raises:
        CacheError: another builder has taken the cache over.
        SourceError: the source as a whole cannot be reached any more.
        OSError: the target cannot be written.
    """
    started = time.perf_counter()
    with contextlib.ExitStack() as stack:
        shard = _Shard(context, job, begin, stack)
        result = shard.add_to_record() if job.again else shard.fill()
        if not (result.vanished or result.changed):
            _check_token(context)
            result.bytes_written = shard.publish()
    result.seconds = time.perf_counter() - started
    return result


def count_rejects(codes: Iterable[str]) -> tuple[int, int]:
    """How many of these codes stand for a failure, and how many for something that is no slice."""
    failed = [REJECT_CODES.get(code, ("failed", ""))[0] == "failed" for code in codes]
    return sum(failed), len(failed) - sum(failed)


def _check_token(context: Context) -> None:
    if not holds_lock(context.cache, context.token):
        raise CacheError(f"{context.cache}: another build has taken over; this one stops without publishing")


def _refuse_lost_source(path: str, error: OSError) -> None:
    """Tell a source that has gone from a file that cannot be read.

    Raises:
        SourceError: nothing of it can be read any more; its files are not to be taken for broken ones.
    """
    if error.errno in LOST_SOURCE:
        raise SourceError(f"{path}: the source has gone ({error.strerror}); bring it back and run the command again")


def now() -> str:
    """UTC, ISO 8601, seconds."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


class _Shard:
    """The shard that a task is filling: one writer, one sums array and one scratch image an array."""

    def __init__(
        self, context: Context, job: ShardJob, begin: Callable[[int], object], stack: contextlib.ExitStack
    ) -> None:
        rows, channels = context.rows_per_shard, len(context.windows)
        self.context, self.job, self.begin = context, job, begin
        self.images = [np.empty((channels, spec.size_px, spec.size_px), np.uint8) for spec in job.arrays]
        self.sums = [np.zeros((rows, channels, 2), np.uint64) for _ in job.arrays]
        self.drafts = stack.enter_context(Drafts(context.cache.root))
        self.files = [context.cache.images_file(spec, job.shard) for spec in job.arrays]
        self.writers = [
            stack.enter_context(ShardWriter(self.drafts.begin(file), rows, context.codecs[spec.name]))
            for file, spec in zip(self.files, job.arrays, strict=True)
        ]
        self.record: ShardRecord | None = None
        paths = [unit.path for unit in job.units if unit.slot not in job.gone]
        self.read = stack.enter_context(reading(context.source, paths))
        self.used = 0

    def store(self, position: int, found: Slice) -> None:
        """Render one slice into every array at a row of the shard."""
        record, windows = found.record, self.context.windows
        sums = [array[position] for array in self.sums]
        kernel.render(found.stored, record.slope, record.intercept, found.padding, windows, self.images, sums)
        for writer, image in zip(self.writers, self.images, strict=True):
            writer.add(position, image)

    def fill(self) -> ShardResult:
        """Read every unit, pack the slices that are accepted from the shard's start, and note all that was seen."""
        result = ShardResult(self.job.shard)
        log = _Log()
        refused = dict(self.job.refused)
        for unit in self.job.units:
            self.begin(unit.slot)
            log.begin(unit)
            if unit.slot in self.job.gone:
                continue
            try:
                data, stamp = self.read(unit.path)
            except FileNotFoundError:
                result.vanished.append(unit.path)
                continue
            except OSError as error:
                _refuse_lost_source(unit.path, error)
                log.stamp(0, UNKNOWN_TIME, UNREAD)
                log.reject(Reject("unreadable", f"the file cannot be read: {error.strerror}"))
                continue
            except MemoryError:
                log.stamp(0, UNKNOWN_TIME, UNREAD)
                log.reject(Reject("too_large", "the file is larger than the memory that a file may take"))
                continue
            digest = xxhash.xxh3_128_hexdigest(data)
            log.stamp(stamp.size, certain(stamp.mtime_ns), digest)
            if unit.slot in refused:
                log.reject(refused[unit.slot])
                continue
            if unit.digest not in ("", digest):  # other content than the frames were counted from
                whole = self._read(Unit(unit.slot, unit.path), data)
                result.handed_back.append(HandedBack(unit, whole.num_frames, digest))
                log.hand_back()
                continue
            slices = self._read(unit, data)
            frames = unit.stop - unit.first if unit.stop else slices.num_frames
            if self.used + frames > self.context.rows_per_shard:
                result.handed_back.append(HandedBack(unit, frames, digest))
                log.hand_back()
                continue
            for found in slices:
                if isinstance(found, Reject):
                    log.reject(found)
                else:
                    self.store(self.used, found)
                    log.accept(found.record)
                    self.used += 1
        result.slices = self.used
        result.failed, result.other_files = count_rejects(line.code for line in log.rejects)
        self.record = self._new_record(log)
        return result

    def _read(self, unit: Unit, data: memoryview) -> Slices:
        frames = (unit.first, unit.stop) if unit.stop else None
        return read_slices(data, self.context.reading, self.context.patient_key, frames)

    def _new_record(self, log: "_Log") -> ShardRecord:
        return ShardRecord(
            shard=self.job.shard,
            reading=self.context.reading_fingerprint,
            built=now(),
            versions=library_versions(),
            files=tuple(log.files),
            slices=tuple(log.slices),
            rejects=tuple(log.rejects),
            arrays={},
        )

    def add_to_record(self) -> ShardResult:
        """Read the shard's live files again and render their slices into the new arrays, at the rows they have.

        An array that the record knows is mended: what is made again must be what it was.
        """
        result = ShardResult(self.job.shard)
        record = read_record(self.context.cache, self.job.shard)
        if record is None:
            raise CacheError(
                f"{self.context.cache}: the record of shard {self.job.shard} is missing; run the build again"
            )
        self.record = record
        self._keep(self.job.kept)
        placed = enumerate(record.slices)
        positions = {(found.slot, found.record.frame): position for position, found in placed if found}
        for unit in self.job.units:
            self.begin(unit.slot)
            try:
                data, _ = self.read(unit.path)
            except FileNotFoundError:
                result.vanished.append(unit.path)
                continue
            except OSError as error:
                _refuse_lost_source(unit.path, error)
                result.changed.append(unit.path)
                continue
            file = record.files[unit.slot]
            if xxhash.xxh3_128_hexdigest(data) != file.digest:
                result.changed.append(unit.path)
                continue
            for found in self._read(Unit(unit.slot, unit.path, first=file.first, stop=file.stop), data):
                if isinstance(found, Slice):
                    self.store(positions[unit.slot, found.record.frame], found)
                    result.slices += 1
            result.changed += [unit.path] if self._differs(record, [unit.slot]) else []
        self.used = result.slices + len(self.job.kept)
        return result

    def _keep(self, kept: frozenset[int]) -> None:
        """Copy rows of the shard that lies in this one's place."""
        rows = self.context.rows_per_shard
        for file, spec, writer, sums in zip(self.files, self.job.arrays, self.writers, self.sums, strict=True):
            shape = (len(self.context.windows), spec.size_px, spec.size_px)
            stored = read_shard(file.read_bytes(), shape, rows, self.context.codecs[spec.name]) if kept else ()
            for row, image, _ in stored:
                if row in kept and image is not None:
                    writer.add(row, image)
                    sums[row] = sums_of(image)

    def _differs(self, record: ShardRecord, slots: list[int]) -> bool:
        """Whether a slice of these slots came out otherwise than in an array that the record knows."""
        known = [
            (writer.digests, record.arrays[spec.name].digests)
            for writer, spec in zip(self.writers, self.job.arrays, strict=True)
            if spec.name in record.arrays
        ]
        return any(now[row] != then[row] for now, then in known for row in record.rows_of(slots) if then[row])

    def publish(self) -> int:
        """Make the shard of every array durable, then the record that says so. Returns the bytes written."""
        assert self.record
        cache, shard = self.context.cache, self.job.shard
        sizes = [writer.finish() if self.used else 0 for writer in self.writers]
        stored = {
            spec.name: StoredImages(size, tuple(writer.digests), now(), library_versions())
            for writer, size, spec in zip(self.writers, sizes, self.job.arrays, strict=True)
        }
        record = dataclasses.replace(self.record, arrays={**self.record.arrays, **stored})
        sums = {
            cache.sums_file(spec, shard): encode_sums(sums)
            for spec, sums in zip(self.job.arrays, self.sums, strict=True)
        }
        done, copy = cache.record_file(shard), cache.record_copy_file(shard)
        records = {copy: encode_record_copy(record), done: encode_record(record)}
        for path, content in {**sums, **records}.items():
            self.drafts.begin(path).write_bytes(content)
        self.drafts.publish([*self.files, *sums, copy] if self.used else [copy], last=done)
        return sum(sizes)


class _Log:
    """Lines of the done-record, file by file. What a file's line says of its content stays null if it gave no entry."""

    def __init__(self) -> None:
        self.files: list[FileLine] = []
        self.slices: list[PlacedSlice] = []
        self.rejects: list[RejectLine] = []

    def begin(self, unit: Unit) -> None:
        self._slot = unit.slot
        self.files.append(FileLine(unit.path, unit.why, None, None, None, unit.first, unit.stop))

    def stamp(self, size: int, mtime_ns: int, digest: str) -> None:
        self.files[-1] = self.files[-1]._replace(size=size, mtime_ns=mtime_ns, digest=digest)

    def hand_back(self) -> None:
        self.files[-1] = self.files[-1]._replace(size=None, mtime_ns=None, digest=None)

    def accept(self, record: SliceRecord) -> None:
        self.slices.append(PlacedSlice(self._slot, record))

    def reject(self, found: Reject) -> None:
        self.rejects.append(RejectLine(self._slot, found.frame, found.code, found.message))


@functools.cache
def library_versions() -> dict[str, str]:
    """Versions of what decides over pixels, as installed here."""
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions
