"""Make a shard's images again from its files: for arrays that it lacks, or in the place of damaged ones."""

import xxhash

from pipeline.cache.done_records import read_record
from pipeline.cache.shard_record import FileLine, ShardRecord
from pipeline.dicom.records import Slice, Unit
from pipeline.engine.context import ShardResult
from pipeline.engine.shard import OpenShard
from pipeline.errors import CacheError


def render_again(shard: OpenShard) -> tuple[ShardRecord, ShardResult]:
    """Read the shard's live files again and render their slices into the job's arrays, at the rows they have.

    An array that the record knows is repaired: what is made again must be what it was.
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
    """The content of a file, None, and noted, where it has vanished or is not what its rows were built from."""
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
    """Whether a slice of this slot came out otherwise than in an array that the record knows."""
    known = [
        (writer.digests, record.arrays[spec.name].digests)
        for writer, spec in zip(shard.writers, shard.job.arrays, strict=True)
        if spec.name in record.arrays
    ]
    return any(now[row] != then[row] for now, then in known for row in record.rows_of([slot]) if then[row])
