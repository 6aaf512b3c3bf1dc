"""Read and write the done-record of a shard, which marks the shard as built, and the record's second copy."""

import json
import zlib

from pipeline.cache.files import canonical, read_checked, with_checksum, write_atomic
from pipeline.cache.paths import Cache
from pipeline.cache.shard_record import ShardRecord
from pipeline.errors import CacheError

MAX_RECORD_BYTES = 1 << 30


def read_record(cache: Cache, shard: int) -> ShardRecord | None:
    """Read the done-record of a shard; return None if the shard was never finished.

    Raises:
        CacheError: it is damaged.
    """
    file = cache.record_file(shard)
    try:
        return _decode_record(read_checked(file), shard)
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise CacheError(f"{file}: damaged, {error}; run: pipeline verify --repair") from error


def read_record_copy(cache: Cache, shard: int) -> ShardRecord | None:
    """Read the second copy of a done-record; return None if it is missing or damaged."""
    try:
        inflate = zlib.decompressobj()
        content = inflate.decompress(read_checked(cache.record_copy_file(shard)), MAX_RECORD_BYTES)
        return _decode_record(content, shard)
    except (OSError, CacheError, ValueError, RecursionError, zlib.error):
        return None


def _decode_record(content: bytes, shard: int) -> ShardRecord:
    record = ShardRecord.of(json.loads(content))
    if record.shard != shard:
        raise ValueError(f"it belongs to shard {record.shard}")
    return record


def encode_record(record: ShardRecord) -> bytes:
    """Return the content of a done-record: what was read for the shard, and what every array stores of it."""
    return with_checksum(canonical(record.as_json()))


def encode_record_copy(record: ShardRecord) -> bytes:
    """Return the content of the record's second copy, which is compressed to a quarter of its size."""
    return with_checksum(zlib.compress(canonical(record.as_json()), 1))


def write_record(cache: Cache, record: ShardRecord) -> None:
    """Write a record, its copy first, because it is the record that vouches for the contents of the arrays."""
    write_atomic(cache.record_copy_file(record.shard), encode_record_copy(record))
    write_atomic(cache.record_file(record.shard), encode_record(record))


def remove_record(cache: Cache, shard: int) -> None:
    """Remove a record, and then its copy."""
    cache.record_file(shard).unlink(missing_ok=True)
    cache.record_copy_file(shard).unlink(missing_ok=True)
