"""This file keeps the key that patient ids are hashed with: a file of the user's, never in the cache."""

import hashlib
import os
import secrets
from pathlib import Path

from pipeline.cache.files import write_atomic
from pipeline.errors import CatalogError

KEY_BYTES = 32


def default_key_file() -> Path:
    """`patient.key` in the user's configuration folder."""
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "ich-cache" / "patient.key"


def read_key(file: Path | None) -> bytes:
    """The key in `file`; the user's own key, made once with mode 0600, where none is given.

    Raises:
        CatalogError: the file cannot be read, or holds no key.
    """
    path = file or default_key_file()
    try:
        if file is None and not path.exists():
            _make_key(path)
        text = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise CatalogError(f"{path}: the patient key cannot be read ({error}); give --patient-key FILE") from error
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) < KEY_BYTES:
        raise CatalogError(f"{path}: is no patient key: it must hold {2 * KEY_BYTES} hex digits or more")
    return key


def _make_key(path: Path) -> None:
    write_atomic(path, (secrets.token_hex(KEY_BYTES) + "\n").encode())
    path.chmod(0o600)


def key_digest(key: bytes) -> str:
    """What the cache keeps of a key: enough to know it again, nothing to find it by."""
    return hashlib.blake2b(b"patient key", key=key, digest_size=8).hexdigest()
