"""Hash patient ids with a key, which is in a file of the user and is never stored in a cache or sent to workers."""

import contextlib
import hashlib
import os
import secrets
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import platformdirs

from pipeline import system
from pipeline.errors import CacheError, CatalogError

KEY_BYTES = 32


class PatientKey(bytes):
    """A key that is pickled as the path of its file and its digest, so that it is not sent to workers.

    Attributes:
        file: absolute path of the key file, from which unpickling reads the key again.
    """

    file: Path

    def __new__(cls, key: bytes, file: Path) -> "PatientKey":
        made = super().__new__(cls, key)
        made.file = file.absolute()
        return made

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _unpickle_key, (str(self.file), key_digest(self))


def _unpickle_key(file: str, digest: str) -> "PatientKey":
    """Read the key on a worker.

    Raises:
        CacheError: the file cannot be read, or has another key.
    """
    where = f"worker on {socket.gethostname()}"
    try:
        key = _read(Path(file))
    except CatalogError as error:
        raise CacheError(
            f"{where}: {error}; the key is not sent to workers: give --patient-key FILE that all of them can read "
            "under the same path"
        ) from error
    if key_digest(key) != digest:
        raise CacheError(f"{where}: {file}: is not the build's patient key; put the same file there")
    return key


def default_key_file() -> Path:
    """Return the path of `patient.key` in the user's configuration folder."""
    return platformdirs.user_config_path("ich-cache") / "patient.key"


def read_key(file: Path | None) -> PatientKey:
    """Read the key in `file`, or by default the user's key, which is created with mode 0600 if it does not exist.

    Raises:
        CatalogError: the file cannot be read or created, can be read by other users, or has no key.
    """
    path = file or default_key_file()
    if file is None and not path.exists():
        try:
            _make_key(path)
        except OSError as error:
            raise CatalogError(f"{path}: the patient key cannot be created ({error.strerror}); {_ADVICE}") from error
    return _read(path)


_ADVICE = "give --patient-key FILE"


def _read(path: Path) -> PatientKey:
    try:
        with path.open("rb") as file:
            if system.is_open_to_others(file.fileno()):
                raise CatalogError(f"{path}: the patient key is open to other users; run: chmod 600 {path}")
            text = file.read(1 << 16).decode("ascii").strip()
    except OSError as error:
        raise CatalogError(f"{path}: the patient key cannot be read ({error.strerror}); {_ADVICE}") from error
    except UnicodeDecodeError:
        text = ""
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) < KEY_BYTES:
        raise CatalogError(f"{path}: is not a patient key: it must have {2 * KEY_BYTES} hex digits or more")
    return PatientKey(key, path)


def _make_key(path: Path) -> None:
    """Create a key that other users cannot read at any time; if two commands do so at once, the first one's is kept."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(handle, "wb") as file:
            file.write((secrets.token_hex(KEY_BYTES) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)  # unlike a rename, this does not replace a key that another command has just created
    finally:
        draft.unlink()


def hash_patient(key: bytes | None, patient: str) -> str:
    """Return the patient id in the table for a PatientID; without a key it is only escaped, not hashed."""
    if key is None:
        return patient.encode("unicode_escape").decode("ascii")
    return hashlib.blake2b(patient.encode(), key=bytes(key), digest_size=16).hexdigest()


def key_digest(key: bytes) -> str:
    """Return the digest of a key that a cache stores: it identifies the key but does not reveal it."""
    return hashlib.blake2b(b"patient key", key=bytes(key), digest_size=8).hexdigest()
