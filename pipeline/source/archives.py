"""Read the members of zip and tar archives in place, without unpacking them."""

import errno
import os
import struct
import tarfile
import zlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import xxhash

from pipeline.errors import SourceError
from pipeline.source.files import Buffer
from pipeline.source.listing import Listing, Stamp
from pipeline.source.members import DEFLATED, REASONS, Member
from pipeline.source.names import listed_name, opened_name
from pipeline.source.tars import is_old_tar, tar_members
from pipeline.source.zips import zip_members

MAX_MEMBERS = 20_000_000
MAX_MEMBER_BYTES = 1 << 30
# Slices compress to a half or a third, blank ones to a thousandth; in larger members, such a ratio means a zip bomb.
MAX_RATIO, RATIO_MATTERS_BYTES = 100, 16 << 20
_LOCAL_NAMES, _LOCAL_BYTES = struct.Struct("<2H"), 30
# Number of indexes kept in memory, 64 bytes per member; a folder of archives often has one for each study.
_INDEXES = 64
_END_BYTES = (1 << 16) + 22
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}


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
        """Return the member of this name; of several, the last one, which unpacking the archive would leave.

        Raises:
            FileNotFoundError: there is no such member.
        """
        key = np.uint64(_hash(name))
        place = int(np.searchsorted(self._hashes, key, "right", sorter=self._order)) - 1
        if place < 0 or self._hashes[self._order[place]] != key:
            raise FileNotFoundError(errno.ENOENT, "no such member in the archive")
        return Member(*map(int, self._columns[:, self._order[place]]))


@dataclass(frozen=True, slots=True)
class Archive:
    """A zip or tar file, read in place."""

    file: str
    kind: str

    def scan(self) -> Listing:
        members = dict(list_members(self.file, self.kind))  # keeps the last of several with the same name
        if not members:
            raise SourceError(f"{self.file}: no files in it; give an archive of DICOM files")
        sizes = np.fromiter((member.size for member in members.values()), np.int64, len(members))
        times = np.fromiter((member.mtime_ns for member in members.values()), np.int64, len(members))
        return Listing(list(map(listed_name, members)), sizes, times, ordered=True)

    def read(self, path: str, buffer: Buffer) -> tuple[memoryview, Stamp]:
        content, member = read_member(self.file, self.kind, opened_name(path))
        return content, Stamp(member.size, member.mtime_ns)


def archive_kind(file: str) -> str | None:
    """Return "zip" or "tar" according to the content of a file, None for any other file.

    Raises:
        SourceError: it is an archive of an unsupported kind, such as a tar that is compressed as a whole.
        OSError: it cannot be read.
    """
    with open(file, "rb") as stream:
        head = stream.read(512)
        if head[:4] in (b"PK\3\4", b"PK\5\6"):
            return "zip"
        if head[257:262] == b"ustar":
            return "tar"
        if head[:2] == b"MZ" or head[:4] == b"\x7fELF" or head[:2] == b"#!":
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - _END_BYTES))
            if b"PK\5\6" in stream.read():
                raise SourceError(
                    f"{file}: a self-extracting zip, which is not supported; unpack it, or repack it as a zip"
                )
    if head[:4] in (b"PK\7\x08", b"PK00"):
        raise SourceError(f"{file}: a part of a spanned zip, which is not supported; join the parts or unpack them")
    if is_old_tar(head):
        raise SourceError(
            f"{file}: a tar in the old (v7) format, which is not supported; unpack it, or repack it as a zip"
        )
    if is_gzipped(file):
        return None
    if head[:2] in _COMPRESSED and file.lower().endswith((".gz", ".tgz", ".bz2", ".xz", ".zst")):
        raise SourceError(f"{file}: compressed as a whole ({_COMPRESSED[head[:2]]}); unpack it, or repack it as a zip")
    return None


def list_members(file: str, kind: str) -> Iterator[tuple[str, Member]]:
    """Yield (name, member) for every file in the archive except hidden ones, in archive order.

    Raises:
        SourceError: the archive is damaged or cannot be read.
    """
    try:
        for name, member in (zip_members if kind == "zip" else tar_members)(file):
            parts = name.split("/")
            if parts[-1] and parts[0] != "__MACOSX" and not any(part[:1] == "." and part != ".." for part in parts):
                yield name, member
    except OSError as error:
        raise SourceError(f"{file}: {error.strerror or error}") from None
    except SourceError as error:
        raise SourceError(f"{file}: a damaged or incomplete {kind} archive: {error}") from None
    except (struct.error, tarfile.TarError, ValueError, EOFError, ArithmeticError, LookupError, RecursionError):
        raise SourceError(
            f"{file}: a damaged {kind} archive; download it again, or unpack what can be recovered"
        ) from None


def read_member(file: str, kind: str, name: str) -> tuple[memoryview, Member]:
    """Read the complete content of a member.

    Raises:
        FileNotFoundError: the archive or the member no longer exists.
        OSError: the member is damaged, encrypted, or over the limits.
        SourceError: the archive is damaged.
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
        packed = os.pread(descriptor, member.packed_size, offset)
    finally:
        os.close(descriptor)
    content = _inflate(packed, member.size) if member.method == DEFLATED else packed
    if len(content) != member.size or member.crc not in (-1, zlib.crc32(content)):
        raise OSError(errno.EIO, "the member is damaged")
    return memoryview(content), member


def is_gzipped(file: str) -> bool:
    """Return whether the name is that of a single file compressed with gzip, such as `IM1.dcm.gz`, and not of a tar."""
    name = file.lower()
    return name.endswith(".gz") and not name.endswith(".tar.gz")


def gunzip(packed: memoryview) -> bytes:
    """Decompress the content of a gzip file, within the limits for a member.

    Raises:
        OSError: it is damaged, or over the limits.
    """
    limit = MAX_MEMBER_BYTES if MAX_RATIO * len(packed) > MAX_MEMBER_BYTES else MAX_RATIO * len(packed)
    limit = max(limit, RATIO_MATTERS_BYTES)
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 16)
    try:
        content = unpacker.decompress(packed, limit + 1)
    except zlib.error:
        raise OSError(errno.EIO, "damaged gzip data") from None
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"it unpacks to more than {MAX_RATIO} times its size, or to more than 1 GB")
    if not unpacker.eof:
        raise OSError(errno.EIO, "the gzip data is truncated")
    return content


@lru_cache(maxsize=_INDEXES)
def _index(file: str, kind: str, size: int, mtime_ns: int) -> Index:
    """Return the index of an archive, made once per process and again if the archive's size or time has changed."""
    return Index(list_members(file, kind))


def _hash(name: str) -> int:
    return xxhash.xxh3_64_intdigest(name.encode("utf-8", "surrogatepass"))


def _check_limits(member: Member) -> None:
    if member.method in REASONS:
        raise OSError(errno.ENOTSUP, REASONS[member.method])
    if member.size > MAX_MEMBER_BYTES:
        raise OSError(errno.EFBIG, f"the member is larger than {MAX_MEMBER_BYTES >> 30} GB")
    if member.size > RATIO_MATTERS_BYTES and member.size > MAX_RATIO * member.packed_size:
        raise OSError(errno.EFBIG, f"the member unpacks to more than {MAX_RATIO} times its size")


def _inflate(packed: bytes, size: int) -> bytes:
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, size + 1)
    except zlib.error:
        raise OSError(errno.EIO, "the member is damaged") from None
