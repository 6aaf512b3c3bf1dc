"""Write files atomically, so that each is complete or absent, with checksums that reveal flipped bits."""

import errno
import hashlib
import json
import os
import re
import secrets
import stat
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from pipeline.errors import CacheError
from pipeline.system import READ_FLAGS, sync_folder

PARTIAL = ".partial"
MAX_FILE_BYTES = 1 << 32  # a table of 750,000 slices has 200 MB, a shard of 256 at 1,024 px 300 MB


def partial_name(path: Path) -> Path:
    """Return a fresh temporary name in the folder of `path`; leftovers are recognised by its suffix."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL}")


def is_partial_name(name: str) -> bool:
    """Return whether `partial_name` could have made this name; other programs write temporary files too."""
    return bool(re.fullmatch(rf"\..+\.[0-9a-f]{{8}}{re.escape(PARTIAL)}", name, re.DOTALL))


def publish(partial: Path, path: Path) -> None:
    """Rename a complete, fsynced temporary file to its final name, durably."""
    os.replace(partial, path)
    sync_folder(path.parent)


def make_folder(folder: Path) -> None:
    """Create a folder and its missing parents, durably."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def refuse_links_between(top: Path, path: Path) -> None:
    """Refuse to write below a folder that is a symbolic link: an untrusted cache could point it anywhere.

    Args:
        top: the output folder; it may be a link itself.
        path: of the file to be written, somewhere below `top`.

    Raises:
        CacheError: one of the folders between the two is a link.
    """
    for folder in path.relative_to(top).parents:
        if folder != Path() and (top / folder).is_symlink():
            refuse_link(top / folder)


def refuse_link(path: Path) -> NoReturn:
    """Raise a CacheError for a symbolic link in place of a folder or file of a cache."""
    raise CacheError(f"{path}: is a link; a cache must be self-contained: replace the link with what it points to")


def write_atomic(path: Path, content: bytes) -> None:
    """Replace or create a file: write a temporary file, fsync it, rename it, fsync the folder."""
    make_folder(path.parent)
    partial = partial_name(path)
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        publish(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def canonical(content: Any) -> bytes:
    """Return canonical JSON: the same content always gives the same bytes, with a final newline."""
    return (json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True) + "\n").encode()


def sha256(content: bytes) -> str:
    """Return the SHA-256 digest of the content, in hex."""
    return hashlib.sha256(content).hexdigest()


def with_checksum(content: bytes) -> bytes:
    """Prefix the content with its digest, as one line of text."""
    return sha256(content).encode() + b"\n" + content


def read_file(path: Path) -> bytes:
    """Read a file of the cache.

    Raises:
        CacheError: it is a folder, a pipe or a device, is larger than any file of a cache, or cannot be read.
        FileNotFoundError, NotADirectoryError: there is no such file.
    """
    try:
        return read_regular(path)
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise CacheError(f"{path}: cannot be read ({error.strerror}); run: pipeline verify --repair") from error


def read_regular(path: Path) -> bytes:
    """Read a regular file without ever blocking: an untrusted cache may have a pipe in its place.

    Raises:
        OSError: it is missing, is not a file, is larger than MAX_FILE_BYTES, or cannot be read.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_FILE_BYTES:
            raise OSError(errno.EFBIG, f"it has {size:,} bytes", str(path))
        return file.read()


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading.

    Raises:
        OSError: it is missing, is not a file, or cannot be read.
    """
    descriptor = os.open(path, READ_FLAGS)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "it is a pipe, socket or device", str(path))


def read_checked(path: Path) -> bytes:
    """Read a file that begins with the checksum of `with_checksum`, and return the content after checking it.

    Raises:
        CacheError: the content does not match its digest.
        FileNotFoundError: there is no such file.
    """
    content = read_file(path)
    if not checksum_matches(content):
        raise CacheError(f"{path}: damaged, its digest does not match; run: pipeline verify --repair")
    return content.partition(b"\n")[2]


def checksum_matches(content: bytes) -> bool:
    """Return whether the content of a file written with `with_checksum` matches its digest."""
    digest, _, rest = content.partition(b"\n")
    return sha256(rest).encode() == digest
