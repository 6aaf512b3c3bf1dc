"""Render the images of a shard again from its files, into new arrays or in place of damaged images."""

import xxhash

from pipeline.cache.done_records import read_record
from pipeline.cache.shard_record import FileLine, ShardRecord
from pipeline.dicom.records import Slice, Unit
from pipeline.engine.context import ShardResult
from pipeline.engine.shard import OpenShard
from pipeline.errors import CacheError


def rerender(shard: OpenShard) -> tuple[ShardRecord, ShardResult]:
    """Read the shard's live files again and render their slices into the job's arrays, at their recorded rows.

    An array that the record already lists is being repaired, so its images must come out as they were.

    Returns:
        the existing record, and the result.

    Raises:
        CacheError: the record is missing or damaged.
    """
    job, result = shard.job, ShardResult(shard.job.shard)
    record = read_record(shard.context.cache, job.shard)
    if record is None:
        raise CacheError(f"{shard.context.cache}: the record of shard {job.shard} is missing; run the build again")
    shard.keep(job.kept)
    placed = enumerate(record.slices)
    positions = {(found.slot, found.record.frame): position for position, found in placed if found}
    for unit in job.units:
        shard.begin(unit.slot)
        file = record.files[unit.slot]
        data = _read_unchanged(unit, file, shard, result)
        if data is None:
            continue
        for found in shard.slices_of(Unit(unit.slot, unit.path, first=file.first, stop=file.stop), data):
            if isinstance(found, Slice):
                shard.store(positions[unit.slot, found.record.frame], found)
                result.slices += 1
        if _differs(shard, record, unit.slot):
            result.changed.append(unit.path)
    return record, result


def _read_unchanged(unit: Unit, file: FileLine, shard: OpenShard, result: ShardResult) -> memoryview | None:
    """Return the content of a file; record it and return None if it has vanished, or changed since it was built."""
    try:
        data, _ = shard.read(unit.path)
    except FileNotFoundError:
        result.vanished.append(unit.path)
        return None
    except OSError:
        result.changed.append(unit.path)
        return None
    if xxhash.xxh3_128_hexdigest(data) != file.digest:
        result.changed.append(unit.path)
        return None
    return data


def _differs(shard: OpenShard, record: ShardRecord, slot: int) -> bool:
    """Return whether a slice of this slot differs from its recorded image in any array."""
    known = [
        (writer.digests, record.arrays[spec.name].digests)
        for writer, spec in zip(shard.writers, shard.job.arrays, strict=True)
        if spec.name in record.arrays
    ]
    return any(now[row] != then[row] for now, then in known for row in record.rows_of([slot]) if then[row])
