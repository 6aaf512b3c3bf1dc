"""Keep the key that patient ids are hashed with: a file of the user's, never in the cache, never sent."""

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
    """A key and the file that it is in. Pickled, it is the file's path and the key's digest: the key does not travel.

    Attributes:
        file: full path; whoever unpickles the key reads it there, on whatever machine.
    """

    file: Path

    def __new__(cls, key: bytes, file: Path) -> "PatientKey":
        made = super().__new__(cls, key)
        made.file = file.absolute()
        return made

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _read_again, (str(self.file), key_digest(self))


def _read_again(file: str, digest: str) -> "PatientKey":
    """Read the key where a task was sent to.

    Raises:
        CacheError: it is not there, or is another one.
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
    """`patient.key` in the user's configuration folder."""
    return platformdirs.user_config_path("ich-cache") / "patient.key"


def read_key(file: Path | None) -> PatientKey:
    """The key in `file`; the user's own key, made once with mode 0600, where none is given.

    Raises:
        CatalogError: the file cannot be read, can be read by others, or holds no key.
    """
    path = file or default_key_file()
    if file is None and not path.exists():
        try:
            _make_key(path)
        except OSError as error:
            raise CatalogError(f"{path}: the patient key cannot be made ({error.strerror}); {_GIVE}") from error
    return _read(path)


_GIVE = "give --patient-key FILE"


def _read(path: Path) -> PatientKey:
    try:
        with path.open("rb") as file:
            if system.lets_others_in(file.fileno()):
                raise CatalogError(f"{path}: the patient key is open to other users; run: chmod 600 {path}")
            text = file.read(1 << 16).decode("ascii").strip()
    except OSError as error:
        raise CatalogError(f"{path}: the patient key cannot be read ({error.strerror}); {_GIVE}") from error
    except UnicodeDecodeError:
        text = ""
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) < KEY_BYTES:
        raise CatalogError(f"{path}: is not a patient key: it must hold {2 * KEY_BYTES} hex digits or more")
    return PatientKey(key, path)


def _make_key(path: Path) -> None:
    """Make a key that nobody else can read at any moment; of two commands that do so at once, both get the first's."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(handle, "wb") as file:
            file.write((secrets.token_hex(KEY_BYTES) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)  # unlike a rename, it never replaces a key that another command has made meanwhile
    finally:
        draft.unlink()


def hash_patient(key: bytes | None, patient: str) -> str:
    """The table's patient id for the one that a label file has, which is that of the DICOM files; None keeps it."""
    if key is None:
        return patient.encode("unicode_escape").decode("ascii")
    return hashlib.blake2b(patient.encode(), key=bytes(key), digest_size=16).hexdigest()


def key_digest(key: bytes) -> str:
    """What the cache keeps of a key: enough to know it again, nothing to find it by."""
    return hashlib.blake2b(b"patient key", key=bytes(key), digest_size=8).hexdigest()
