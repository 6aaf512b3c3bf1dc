"""This file reads the members of zip and tar archives in place, without unpacking them."""

import errno
import os
import struct
import tarfile
import zlib
from array import array
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import xxhash

from pipeline.errors import SourceError

MAX_MEMBERS = 20_000_000
MAX_MEMBER_BYTES = 1 << 30
# Slices deflate to a half or a third, blank ones to a thousandth: above this size such a ratio is a bomb.
MAX_RATIO, RATIO_MATTERS_BYTES = 100, 16 << 20
_STORED, _DEFLATED = 0, 8
_ENCRYPTED, _UTF8 = 1, 0x800
_END, _END64_LOCATOR, _END64 = struct.Struct("<4s4H2LH"), struct.Struct("<4sLQL"), struct.Struct("<4sQ2H2L4Q")
_ENTRY, _LOCAL_NAMES, _LOCAL_BYTES = struct.Struct("<4s6H3L5H2L"), struct.Struct("<2H"), 30
_ABSENT = 0xFFFFFFFF
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}


class Member(NamedTuple):
    """Where one file lies in an archive.

    Attributes:
        offset: of the local header in a zip, of the content in a tar.
        held: bytes in the archive.
        size: bytes when unpacked.
        mtime_ns: modification time, ns since 1970, plus the checksum: content that changes under the same time shows.
        method: compression method as in a zip, 0 for none; -1 for one that is not read here.
        crc: CRC-32 of the content, or -1 where the archive has none.
    """

    offset: int
    held: int
    size: int
    mtime_ns: int
    method: int
    crc: int


class Index:
    """The members of an archive by name: six numbers and a hash each, so that a million take 60 MB in a worker."""

    def __init__(self, members: Iterator[tuple[str, Member]]) -> None:
        columns = [array("q") for _ in Member._fields]
        hashes = array("Q")
        for name, member in members:
            if len(hashes) >= MAX_MEMBERS:
                raise SourceError(f"the archive holds more than {MAX_MEMBERS:,} files; divide it")
            hashes.append(_hash(name))
            for column, value in zip(columns, member, strict=True):
                column.append(value)
        self._hashes = np.array(hashes, np.uint64)
        self._order = np.argsort(self._hashes, kind="stable")
        self._columns = np.array(columns, np.int64)  # (6, members)

    def find(self, name: str) -> Member:
        """Look a member up; of several with one name the last, which is the one that unpacking would leave.

        Raises:
            FileNotFoundError: there is none.
        """
        key = np.uint64(_hash(name))
        place = int(np.searchsorted(self._hashes, key, "right", sorter=self._order)) - 1
        if place < 0 or self._hashes[self._order[place]] != key:
            raise FileNotFoundError(errno.ENOENT, "no such member in the archive")
        return Member(*map(int, self._columns[:, self._order[place]]))


def archive_kind(file: str) -> str | None:
    """Tell from its content whether a file is a "zip" or a "tar", or None for another file.

    Raises:
        SourceError: a compressed tar, which could be read from its start only.
    """
    with open(file, "rb") as stream:
        head = stream.read(512)
        if head[:4] in (b"PK\3\4", b"PK\5\6"):
            return "zip"
        if head[257:262] == b"ustar":
            return "tar"
    if head[:2] in _COMPRESSED and file.lower().endswith((".gz", ".tgz", ".bz2", ".xz", ".zst")):
        raise SourceError(f"{file}: compressed as a whole ({_COMPRESSED[head[:2]]}); unpack it, or pack it as a zip")
    return None


def list_members(file: str, kind: str) -> Iterator[tuple[str, Member]]:
    """Yield (name, member) of every file in the archive, in archive order, hidden ones left out.

    Raises:
        SourceError: the archive is damaged or not there.
    """
    try:
        for name, member in (_zip_members if kind == "zip" else _tar_members)(file):
            parts = name.split("/")
            if parts[-1] and parts[0] != "__MACOSX" and not any(part[:1] == "." and part != ".." for part in parts):
                yield name, member
    except OSError as error:
        raise SourceError(f"{file}: {error.strerror or error}") from None
    except (struct.error, tarfile.TarError, ValueError, EOFError):
        raise SourceError(f"{file}: a damaged {kind} archive; fetch it again, or unpack what can be saved") from None


def read_member(file: str, kind: str, name: str) -> tuple[memoryview, Member]:
    """Read one member whole.

    Raises:
        FileNotFoundError: the archive, or the member in it, is gone.
        OSError: it cannot be read: damaged, encrypted, or beyond the limits.
    """
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        member = _index(file, kind, status.st_size, status.st_mtime_ns).find(name)
        _check_limits(member)
        offset = member.offset
        if kind == "zip":
            lengths = os.pread(descriptor, _LOCAL_NAMES.size, offset + 26)
            if len(lengths) < _LOCAL_NAMES.size:
                raise OSError(errno.EIO, "the archive ends before the member")
            offset += _LOCAL_BYTES + sum(_LOCAL_NAMES.unpack(lengths))
        held = os.pread(descriptor, member.held, offset)
    finally:
        os.close(descriptor)
    content = _inflate(held, member.size) if member.method == _DEFLATED else held
    if len(content) != member.size or member.crc not in (-1, zlib.crc32(content)):
        raise OSError(errno.EIO, "the member is damaged")
    return memoryview(content), member


@lru_cache(maxsize=2)
def _index(file: str, kind: str, size: int, mtime_ns: int) -> Index:
    """Index an archive once a process; size and time are there to notice that it was replaced."""
    return Index(list_members(file, kind))


def _hash(name: str) -> int:
    return xxhash.xxh3_64_intdigest(name.encode("utf-8", "surrogatepass"))


def _check_limits(member: Member) -> None:
    if member.method == -1:
        raise OSError(errno.ENOTSUP, "the member is encrypted, or compressed in another way than deflate")
    if member.size > MAX_MEMBER_BYTES:
        raise OSError(errno.EFBIG, f"the member is larger than {MAX_MEMBER_BYTES >> 30} GB")
    if member.size > RATIO_MATTERS_BYTES and member.size > MAX_RATIO * member.held:
        raise OSError(errno.EFBIG, f"the member unpacks to more than {MAX_RATIO} times its size")


def _inflate(held: bytes, size: int) -> bytes:
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(held, size + 1)
    except zlib.error:
        raise OSError(errno.EIO, "the member is damaged") from None


def _zip_members(file: str) -> Iterator[tuple[str, Member]]:
    """Read the central directory of a zip.

    Source: PKWARE APPNOTE 6.3.9, 4.3.12 (central directory), 4.3.14-16 (its end), 4.5.3 (Zip64 sizes).
    """
    with open(file, "rb") as stream:
        count, size, offset = _find_directory(stream.fileno(), os.fstat(stream.fileno()).st_size)
        stream.seek(offset)
        directory = stream.read(size)
    at = 0
    for _ in range(count):
        (
            signature, _, _, flags, method, time, date, crc, held, unpacked,
            name_bytes, extra_bytes, comment_bytes, _, _, _, offset,
        ) = _ENTRY.unpack_from(directory, at)  # fmt: skip
        if signature != b"PK\1\2":
            raise ValueError("no central directory entry")
        at += _ENTRY.size
        name = directory[at : at + name_bytes].decode("utf-8" if flags & _UTF8 else "cp437")
        if _ABSENT in (held, unpacked, offset):
            extra = directory[at + name_bytes : at + name_bytes + extra_bytes]
            unpacked, held, offset = _zip64_numbers(extra, unpacked, held, offset)
        at += name_bytes + extra_bytes + comment_bytes
        if flags & _ENCRYPTED or method not in (_STORED, _DEFLATED):
            method = -1
        yield name, Member(offset, held, unpacked, _dos_time_ns(date, time) + crc, method, crc)


def _find_directory(descriptor: int, size: int) -> tuple[int, int, int]:
    """Return the number of entries, and size and offset of the central directory."""
    tail_at = max(0, size - (1 << 16) - _END.size - _END64_LOCATOR.size)
    tail = os.pread(descriptor, size - tail_at, tail_at)
    at = tail.rfind(b"PK\5\6")
    if at < 0:
        raise ValueError("no end of central directory")
    _, _, _, _, count, directory_size, offset, _ = _END.unpack_from(tail, at)
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
        field, length = _LOCAL_NAMES.unpack_from(extra, at)
        if field == 1:
            wide = iter(struct.unpack_from(f"<{length // 8}Q", extra, at + 4))
            return [next(wide, number) if number == _ABSENT else number for number in numbers]
        at += 4 + length
    return list(numbers)


def _dos_time_ns(date: int, time: int) -> int:
    """Turn a DOS time stamp into ns since 1970, taken as UTC; an impossible date is 0."""
    try:
        moment = datetime(
            1980 + (date >> 9), date >> 5 & 15, date & 31, time >> 11, time >> 5 & 63, (time & 31) * 2, tzinfo=UTC
        )
    except ValueError:
        return 0
    return int(moment.timestamp()) * 1_000_000_000


def _tar_members(file: str) -> Iterator[tuple[str, Member]]:
    with tarfile.open(file, "r:") as archive:
        for info in archive:
            if info.isreg() and not info.issparse():
                mtime_ns = int(info.mtime * 1e9)
                yield (
                    info.name.removeprefix("./"),
                    Member(info.offset_data, info.size, info.size, mtime_ns, _STORED, -1),
                )
            archive.members.clear()  # type: ignore[attr-defined]  # tarfile would keep a kilobyte a member
