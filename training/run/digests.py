"""Record the digests of a run's files, so that corruption on disk is detected when they are read.

`digests.json` in the run's folder has the SHA-256 of each file. Before a file is replaced, its new digest is added next
to the old one, so that after a kill in between the file matches one of the two. For log.csv, which grows, it is the
digest of a prefix. A folder without `digests.json`, such as one that was put together by hand, is not checked.
"""

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock

from training.errors import NotWrittenError, RunError
from training.run.documents import read_document
from training.system import MOST_BYTES, open_file, sync_folder

FILE = "digests.json"
LOCK = ".digests.lock"
PIECE = 1 << 22
TEXTS = (".json", ".csv")
Accepted = tuple[int, str]  # length in bytes, and SHA-256 of that many bytes


def begin(root: Path) -> None:
    """Start recording the digests of all files that are written to a run's folder.

    Raises:
        NotWrittenError: if the disk is full or read-only.
    """
    if not (root / FILE).exists():
        try:
            _write(root, {})
        except OSError as error:
            raise cannot_write(root / FILE, error) from error


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Replace a file atomically: after a kill or a power cut, either the old or the new file is there, complete.

    Raises:
        NotWrittenError: if it cannot be written, because the disk is full or read-only.
    """
    # A run has a single writer, so a fixed name is enough, and leftovers of a killed writer are overwritten.
    temporary = _partial(path)
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if (root := root_of(path)) is not None:
            accept(root, path, (temporary.stat().st_size, _digest(temporary)))
        temporary.replace(path)
        sync_folder(path.parent)
    except Exception as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if (refusal := _refusal(error)) is None:
            raise
        raise cannot_write(path, refusal) from error


def _refusal(error: BaseException | None) -> OSError | None:
    """Return the OSError behind an error, if any: torch.save raises its own when it closes a file on a full disk."""
    while error is not None and not isinstance(error, OSError):
        error = error.__context__
    return error


def cannot_write(path: Path, error: OSError) -> NotWrittenError:
    """Return the error for a file that cannot be written, including what to do."""
    return NotWrittenError(f"{path}: cannot be written ({error.strerror or error})")


def accept(root: Path, path: Path, new: Accepted) -> None:
    """Accept a new length and digest for a file in the run's folder, in addition to those that it has now.

    For a log only the new prefix is accepted, which must already be on disk when this is called.
    """
    name = path.relative_to(root).as_posix()
    with FileLock(root / LOCK):
        known = _read(root)
        replaced = path.exists() and not _grows(path)
        now = [old for old in known.get(name, []) if replaced and _fits(path, old)]
        gone = [other for other in known if other.startswith("checkpoints/") and not _is_there(root / other)]
        _write(root, {other: of for other, of in known.items() if other not in gone} | {name: [*now, new]})


def check(path: Path, remedy: str) -> None:
    """Raise a RunError if a file of a run is not as the run wrote it.

    Args:
        path: the file.
        remedy: what to do about a damaged file, for the message.
    """
    if (root := root_of(path)) is None:
        return
    accepted = _read(root).get(path.relative_to(root).as_posix())
    try:
        if accepted is None or not path.exists() or any(_fits(path, of) for of in accepted):
            return
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror}); {remedy}") from error
    raise RunError(f"{path}: is damaged: its SHA-256 is not the one in {FILE}; {remedy}")


def refuse_special_files(run: Path) -> None:
    """Raise a RunError if a run's folder has a pipe, a device or an oversized text file: reading it might never end."""
    for folder, _, names in os.walk(run):
        for path in (Path(folder, name) for name in names):
            try:
                found = path.stat()
            except OSError:  # a broken link is reported when it is read
                continue
            if not stat.S_ISREG(found.st_mode):
                raise RunError(f"{path}: is a pipe, socket or device, which does not belong in a run; remove it")
            if found.st_size > MOST_BYTES and path.suffix in TEXTS:
                raise RunError(
                    f"{path}: has {found.st_size:,} bytes, more than any file of a run; restore or remove it"
                )


def root_of(path: Path) -> Path | None:
    """Return the run's folder that a file is in, or None if it does not record digests."""
    return next((folder for folder in (path.parent, path.parent.parent) if (folder / FILE).exists()), None)


def prefix(path: Path, length: int) -> Accepted:
    """Return the digest of a file's first `length` bytes."""
    return length, _digest(path, length)


def _fits(path: Path, of: Accepted) -> bool:
    length, digest = of
    size = path.stat().st_size
    return (size == length or (size > length and _grows(path))) and _digest(path, length) == digest


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def _is_there(path: Path) -> bool:
    """Return whether a file exists or is about to, as another thread may be writing it."""
    return _partial(path).exists() or path.exists()  # in this order, since the partial file is renamed to the other


def _grows(path: Path) -> bool:
    return path.name == "log.csv"


def _digest(path: Path, length: int | None = None) -> str:
    digest, left = hashlib.sha256(), path.stat().st_size if length is None else length
    with open_file(path) as file:
        while left > 0 and (piece := file.read(min(PIECE, left))):
            digest.update(piece)
            left -= len(piece)
    return digest.hexdigest()


def _read(root: Path) -> dict[str, list[Accepted]]:
    file = root / FILE
    remedy = "restore it; or remove it, after which nothing of this run is checked"
    try:
        content = read_document(file)
        files = content["files"]
        if hashlib.sha256(_canonical(files)).hexdigest() != content["sha256"]:
            raise ValueError("its own digest does not match")
        return {name: [(int(length), str(digest)) for length, digest in of] for name, of in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise RunError(f"{file}: is damaged ({error}); {remedy}") from error


def _write(root: Path, files: dict[str, list[Accepted]]) -> None:
    content = {"files": files, "sha256": hashlib.sha256(_canonical(files)).hexdigest()}
    temporary = _partial(root / FILE)
    try:
        with open(temporary, "wb") as opened:
            opened.write(json.dumps(content, indent=2).encode())
            opened.flush()
            os.fsync(opened.fileno())
        temporary.replace(root / FILE)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(root)


def _canonical(files: object) -> bytes:
    return json.dumps(files, sort_keys=True, separators=(",", ":")).encode()
