"""Write files that are whole or not there, with a checksum that reveals a flipped bit."""

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
    """A fresh temporary name beside `path`; leftovers are known by their ending."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL}")


def is_partial_name(name: str) -> bool:
    """Whether `partial_name` makes such names; other programs have temporary files too."""
    return bool(re.fullmatch(rf"\..+\.[0-9a-f]{{8}}{re.escape(PARTIAL)}", name, re.DOTALL))


def publish(partial: Path, path: Path) -> None:
    """Rename a complete, fsynced temporary file to its name and make the name durable."""
    os.replace(partial, path)
    sync_folder(path.parent)


def make_folder(folder: Path) -> None:
    """Create a folder and its parents, each name durable."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def refuse_links_between(top: Path, path: Path) -> None:
    """Refuse to write below a folder that is a link: it may be a stranger's, and lead anywhere.

    Args:
        top: the folder that was given for writing; may be a link itself.
        path: of the file that is to be written somewhere below it.

    Raises:
        CacheError: there is one between the two.
    """
    for folder in path.relative_to(top).parents:
        if folder != Path() and (top / folder).is_symlink():
            refuse_link(top / folder)


def refuse_link(path: Path) -> NoReturn:
    """Raise a CacheError of a link in the place of a folder or file of a cache."""
    raise CacheError(f"{path}: is a link; a cache must be self-contained: replace the link with what it points to")


def write_atomic(path: Path, content: bytes) -> None:
    """Replace or create a file: temporary file, fsync, rename, fsync of the folder."""
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
    """JSON text that is the same for the same content, with a line end."""
    return (json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True) + "\n").encode()


def sha256(content: bytes) -> str:
    """Return the digest of a content in hex."""
    return hashlib.sha256(content).hexdigest()


def with_checksum(content: bytes) -> bytes:
    """Put the content's digest, as one line of text, before it."""
    return sha256(content).encode() + b"\n" + content


def read_file(path: Path) -> bytes:
    """Read a file of the cache.

    Raises:
        CacheError: it is a folder, a pipe or a device, is larger than a file of a cache can be, or cannot be read.
        FileNotFoundError, NotADirectoryError: there is none.
    """
    try:
        return read_regular(path)
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise CacheError(f"{path}: cannot be read ({error.strerror}); run: pipeline verify --repair") from error


def read_regular(path: Path) -> bytes:
    """Read a file and wait for nobody: a stranger's cache may have a pipe in its place.

    Raises:
        OSError: it is missing, is not a file, is larger than MAX_FILE_BYTES, or cannot be read.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_FILE_BYTES:
            raise OSError(errno.EFBIG, f"it has {size:,} bytes", str(path))
        return file.read()


def open_regular(path: Path) -> BinaryIO:
    """Open a file to be read.

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
    """Read a file that `with_checksum` made, and check it.

    Raises:
        CacheError: the content does not match its digest.
        FileNotFoundError: there is none.
    """
    content = read_file(path)
    if not checksum_matches(content):
        raise CacheError(f"{path}: damaged, its digest does not match; run: pipeline verify --repair")
    return content.partition(b"\n")[2]


def checksum_matches(content: bytes) -> bool:
    """Whether the content of a file that `with_checksum` made matches its digest."""
    digest, _, rest = content.partition(b"\n")
    return sha256(rest).encode() == digest
