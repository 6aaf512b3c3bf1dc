"""Read the headers of a tar archive, including those of tars concatenated to it."""

import math
import os
import posixpath
import tarfile
from collections.abc import Iterator
from typing import BinaryIO

from pipeline.errors import SourceError
from pipeline.source.members import DANGLING_LINK, SPARSE, STORED, Member, within_archive

_BLOCK = tarfile.BLOCKSIZE
_CHUNK_BYTES = 1 << 20
_MAX_LINKS = 40  # in a chain, the limit of Linux for paths


def tar_members(file: str) -> Iterator[tuple[str, Member]]:
    """Yield the regular files of a tar and of tars concatenated to it, then its links as the files they point to.

    Raises:
        SourceError: it does not end as a tar should.
        tarfile.TarError: it is damaged.
    """
    links: dict[str, str] = {}
    for info, end in _headers(file):
        name = _name(info)
        if info.islnk() or info.issym():
            links[name] = _target(info)
        elif info.isreg():
            yield name, _member(info, end)
    if links:
        yield from _resolved(file, links)


def is_old_tar(head: bytes) -> bool:
    """Return whether a file starts with a header of the old (v7) tar format, which has a checksum but no magic number.

    Args:
        head: the first 512 bytes of the file.
    """
    if len(head) < _BLOCK or not head[0] or head[257:262] == b"ustar":
        return False
    try:
        stated = int(head[148:156].strip(b" \0"), 8)
    except ValueError:
        return False
    return stated == sum(head[:148]) + 8 * 32 + sum(head[156:_BLOCK])


def _headers(file: str) -> Iterator[tuple[tarfile.TarInfo, int]]:
    """Yield each header with the size of the archive in bytes.

    `tarfile` takes a damaged header for the end of the archive and ignores the rest, so the place where it stopped is
    checked here.

    Raises:
        SourceError: the archive does not end there, or something else follows.
    """
    seen, at = 0, 0
    with open(file, "rb") as stream:
        end = os.fstat(stream.fileno()).st_size
        while True:
            stream.seek(at)
            with tarfile.open(fileobj=stream, mode="r:", encoding="utf-8", errors="surrogateescape") as archive:
                for info in archive:
                    seen += 1
                    yield info, end
                    archive.members.clear()  # type: ignore[attr-defined]  # tarfile keeps a kilobyte per member
                at = archive.offset  # type: ignore[attr-defined]
            if any(_read(stream, at, 2 * _BLOCK)) or at + 2 * _BLOCK > end:
                raise SourceError(f"the tar has no end after {seen} members: damaged there, or cut off")
            at = _first_nonzero(stream, at)
            if at >= end:
                return
            at -= at % _BLOCK
            if _read(stream, at, _BLOCK)[257:262] != b"ustar":
                raise SourceError(f"something other than a tar follows after {seen} members")


def _read(stream: BinaryIO, at: int, count: int) -> bytes:
    return os.pread(stream.fileno(), count, at)


def _first_nonzero(stream: BinaryIO, at: int) -> int:
    """Return the offset of the first nonzero byte from `at` on, or the end of the file."""
    while chunk := _read(stream, at, _CHUNK_BYTES):
        if rest := chunk.lstrip(b"\0"):
            return at + len(chunk) - len(rest)
        at += len(chunk)
    return at


def _name(info: tarfile.TarInfo) -> str:
    return info.name.removeprefix("./")


def _target(info: tarfile.TarInfo) -> str:
    """Return the path that a link points to: a hard link names a member, a symbolic link a path from its own folder."""
    target = info.linkname if info.islnk() else posixpath.join(posixpath.dirname(info.name), info.linkname)
    return posixpath.normpath(target)


def _member(info: tarfile.TarInfo, end: int) -> Member:
    mtime_ns = int(info.mtime * 1e9) if math.isfinite(info.mtime) and abs(info.mtime) < 1 << 32 else 0
    if info.issparse():
        return Member(0, 0, 0, mtime_ns, SPARSE, -1)
    return within_archive(Member(info.offset_data, info.size, info.size, mtime_ns, STORED, -1), end)


def _resolved(file: str, links: dict[str, str]) -> Iterator[tuple[str, Member]]:
    """Yield each link as the member that it points to, directly or through other links; a dangling link is unreadable.

    Links to folders are left out, as the files in those are listed under their own names.
    """
    by_path = {posixpath.normpath(name): target for name, target in links.items()}
    ends = {}
    for name, target in links.items():
        for _ in range(_MAX_LINKS):
            if target not in by_path:
                break
            target = by_path[target]
        ends[name] = target
    wanted, found, folders = set(ends.values()), {}, set()
    for info, end in _headers(file):
        path = posixpath.normpath(info.name)
        if info.isreg() and path in wanted:
            found[path] = _member(info, end)
        elif info.isdir():
            folders.add(path)
    for name, target in ends.items():
        if target in found:
            yield name, found[target]
        elif target not in folders:
            yield name, Member(0, 0, 0, 0, DANGLING_LINK, -1)
