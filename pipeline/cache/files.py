"""Write files that are whole or not there, with a checksum that reveals a flipped bit."""

import hashlib
import json
import os
import secrets
from pathlib import Path
from typing import Any

from pipeline.errors import CacheError
from pipeline.system import sync_folder

PARTIAL = ".partial"
PRIVATE = ".pipeline"  # the folder of a cache that only this program looks at


def partial_name(path: Path) -> Path:
    """A fresh temporary name beside `path`; leftovers are known by their ending."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL}")


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
        CacheError: it is a folder, or cannot be read.
        FileNotFoundError, NotADirectoryError: there is none.
    """
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise CacheError(f"{path}: cannot be read ({error.strerror}); run: pipeline verify --repair") from error


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
