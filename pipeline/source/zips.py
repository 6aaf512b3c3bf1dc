"""Read the central directory of a zip archive."""

import os
import struct
from collections.abc import Iterator
from datetime import UTC, datetime

from pipeline.errors import SourceError
from pipeline.source.members import DEFLATED, OTHER_METHOD, STORED, Member, within_archive

_ENCRYPTED, _UTF8 = 1, 0x800
_END, _END64_LOCATOR, _END64 = struct.Struct("<4s4H2LH"), struct.Struct("<4sLQL"), struct.Struct("<4sQ2H2L4Q")
_ENTRY, _FIELD = struct.Struct("<4s6H3L5H2L"), struct.Struct("<2H")
_ABSENT = 0xFFFFFFFF


def zip_members(file: str) -> Iterator[tuple[str, Member]]:
    """Yield the name and description of every entry in the central directory of a zip.

    The directory is read up to its size, because writers without Zip64 store the number of entries modulo 65,536.

    Raises:
        SourceError: the file is a part of a spanned zip.
        ValueError, struct.error: it is damaged.

    Source: PKWARE APPNOTE 6.3.9, 4.3.12 (central directory), 4.3.14-16 (its end), 4.5.3 (Zip64 sizes).
    """
    with open(file, "rb") as stream:
        end = os.fstat(stream.fileno()).st_size
        count, size, offset = _find_directory(stream.fileno(), end)
        stream.seek(offset)
        directory = stream.read(size)
    at = seen = 0
    while at < size:
        (
            signature, _, _, flags, method, time, date, crc, packed, unpacked,
            name_bytes, extra_bytes, comment_bytes, _, _, _, offset,
        ) = _ENTRY.unpack_from(directory, at)  # fmt: skip
        if signature != b"PK\1\2":
            raise ValueError("no central directory entry")
        at += _ENTRY.size
        name = directory[at : at + name_bytes].decode("utf-8" if flags & _UTF8 else "cp437", "surrogateescape")
        extra = directory[at + name_bytes : at + name_bytes + extra_bytes]
        at += name_bytes + extra_bytes + comment_bytes
        seen += 1
        if _ABSENT in (packed, unpacked, offset):
            unpacked, packed, offset = _zip64_numbers(extra, unpacked, packed, offset)
        if flags & _ENCRYPTED or method not in (STORED, DEFLATED):
            method = OTHER_METHOD
        mtime_ns = _dos_time_ns(date, time) + crc
        yield name, within_archive(Member(offset, packed, unpacked, mtime_ns, method, crc), end)
    # Without Zip64, 66,000 entries are counted as 464, and some macOS writers count fewer; no writer counts more.
    if at != size or seen < count:
        raise ValueError("the central directory does not match its end record")


def _find_directory(descriptor: int, size: int) -> tuple[int, int, int]:
    """Return the number of entries in the central directory, its size in bytes and its offset.

    Args:
        size: of the file, bytes.
    """
    tail_at = max(0, size - (1 << 16) - _END.size - _END64_LOCATOR.size)
    tail = os.pread(descriptor, size - tail_at, tail_at)
    at = tail.rfind(b"PK\5\6")
    if at < 0:
        raise ValueError("no end of central directory")
    _, disk, _, _, count, directory_size, offset, _ = _END.unpack_from(tail, at)
    if disk not in (0, 0xFFFF):
        raise SourceError("a part of a spanned zip, which is not supported; join the parts (zip -s 0) or unpack them")
    if at >= _END64_LOCATOR.size:
        signature, _, end64, _ = _END64_LOCATOR.unpack_from(tail, at - _END64_LOCATOR.size)
        if signature == b"PK\6\7":
            *_, count, directory_size, offset = _END64.unpack(os.pread(descriptor, _END64.size, end64))
    if offset + directory_size > size:
        raise ValueError("the central directory lies beyond the end")
    return count, directory_size, offset


def _zip64_numbers(extra: bytes, *numbers: int) -> list[int]:
    """Replace the numbers that do not fit 32 bits by those of the Zip64 extra field, which come in the same order."""
    at = 0
    while at + 4 <= len(extra):
        field, length = _FIELD.unpack_from(extra, at)
        if field == 1:
            wide = iter(struct.unpack_from(f"<{min(length, len(extra) - at - 4) // 8}Q", extra, at + 4))
            return [next(wide, number) if number == _ABSENT else number for number in numbers]
        at += 4 + length
    return list(numbers)


def _dos_time_ns(date: int, time: int) -> int:
    """Convert a DOS time stamp, taken as UTC, to ns since 1970; return 0 for an impossible date."""
    try:
        moment = datetime(
            1980 + (date >> 9), date >> 5 & 15, date & 31, time >> 11, time >> 5 & 63, (time & 31) * 2, tzinfo=UTC
        )
    except ValueError:
        return 0
    return int(moment.timestamp()) * 1_000_000_000
