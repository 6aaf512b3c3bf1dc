"""Fill a new shard: read each file of the job, judge it, and store the slices that are accepted."""

from typing import NamedTuple

import xxhash

from pipeline.cache.ledger import UNKNOWN_TIME, UNREAD
from pipeline.cache.shard_record import FileLine, PlacedSlice, RejectLine, ShardRecord
from pipeline.dicom.read import Slices
from pipeline.dicom.records import Reject, SliceRecord, Unit
from pipeline.engine.context import ShardResult, count_rejects
from pipeline.engine.shard import OpenShard
from pipeline.engine.versions import library_versions, now
from pipeline.planning.jobs import HandedBack
from pipeline.source.contents import trusted_mtime


def fill(shard: OpenShard) -> tuple[ShardRecord, ShardResult]:
    """Read every unit and pack the accepted slices from the start of the shard.

    Returns:
        the record of all files, slices and rejects, still without arrays, and the result.
    """
    log, result = _Log(), ShardResult(shard.job.shard)
    for unit in shard.job.units:
        shard.begin(unit.slot)
        log.begin(unit)
        if unit.slot not in shard.job.missing:
            _fill_from(unit, shard, log, result)
    result.slices = shard.used
    result.failed, result.other_files = count_rejects(line.code for line in log.rejects)
    record = ShardRecord(
        shard=shard.job.shard,
        reading=shard.context.reading_fingerprint,
        built=now(),
        versions=library_versions(),
        files=tuple(log.files),
        slices=tuple(log.slices),
        rejects=tuple(log.rejects),
        arrays={},
    )
    return record, result


def _fill_from(unit: Unit, shard: OpenShard, log: "_Log", result: ShardResult) -> None:
    file = _read(unit, shard)
    if file is None:
        result.vanished.append(unit.path)
        return
    log.stamp(file)
    found = _judge(unit, file, shard)
    if isinstance(found, Slices):
        _store(found, shard, log)
    elif isinstance(found, HandedBack):
        result.handed_back.append(found)
        log.hand_back()
    else:
        log.reject(found)


class _File(NamedTuple):
    """An existing file: its size, time and digest for the ledger, and its content or the reason it cannot be read."""

    size: int
    mtime_ns: int
    digest: str
    content: memoryview | Reject


def _read(unit: Unit, shard: OpenShard) -> _File | None:
    """Read the file of a unit; return None if it has vanished."""
    try:
        data, stamp = shard.read(unit.path)
    except FileNotFoundError:
        return None
    except OSError as error:
        why = Reject("unreadable", f"the file cannot be read: {error.strerror}")
        return _File(0, UNKNOWN_TIME, UNREAD, why)
    except MemoryError:
        why = Reject("too_large", "the file is larger than the memory limit for one file")
        return _File(0, UNKNOWN_TIME, UNREAD, why)
    return _File(stamp.size, trusted_mtime(stamp.mtime_ns), xxhash.xxh3_128_hexdigest(data), data)


def _judge(unit: Unit, file: _File, shard: OpenShard) -> Slices | Reject | HandedBack:
    """Return what happens to a file: its slices are stored, it is rejected, or it has more frames than free rows."""
    if isinstance(file.content, Reject):
        return file.content
    refused = dict(shard.job.rejected).get(unit.slot)
    if refused:
        return refused
    if unit.digest not in ("", file.digest):  # it has changed since its frames were counted
        every = shard.slices_of(Unit(unit.slot, unit.path), file.content)
        return HandedBack(unit, every.num_frames, file.digest)
    slices = shard.slices_of(unit, file.content)
    frames = unit.stop - unit.first if unit.stop else slices.num_frames
    if shard.used + frames > shard.context.rows_per_shard:
        return HandedBack(unit, frames, file.digest)
    return slices


def _store(slices: Slices, shard: OpenShard, log: "_Log") -> None:
    for found in slices:
        if isinstance(found, Reject):
            log.reject(found)
        else:
            shard.store(shard.used, found)
            log.accept(found.record)


class _Log:
    """Collects the lines of the done-record. A file that gives no ledger entry keeps a null size, time and digest."""

    def __init__(self) -> None:
        self.files: list[FileLine] = []
        self.slices: list[PlacedSlice] = []
        self.rejects: list[RejectLine] = []

    def begin(self, unit: Unit) -> None:
        self._slot = unit.slot
        self.files.append(FileLine(unit.path, unit.why, None, None, None, unit.first, unit.stop))

    def stamp(self, file: _File) -> None:
        self.files[-1] = self.files[-1]._replace(size=file.size, mtime_ns=file.mtime_ns, digest=file.digest)

    def hand_back(self) -> None:
        self.files[-1] = self.files[-1]._replace(size=None, mtime_ns=None, digest=None)

    def accept(self, record: SliceRecord) -> None:
        self.slices.append(PlacedSlice(self._slot, record))

    def reject(self, found: Reject) -> None:
        self.rejects.append(RejectLine(self._slot, found.frame, found.code, found.message))
