"""Remember the digests of a run's files, so that a bit that rots on disk is found on reading.

`digests.json` of the run's folder has the SHA-256 of each file. It names the new digest beside the old one before the
file is replaced, so that a kill in between leaves a file that one of the two fits. log.csv, which grows, has that of
its beginning. A folder without `digests.json` (what somebody else put together) is not checked.
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
Accepted = tuple[int, str]  # length in bytes, SHA-256 of so many


def begin(root: Path) -> None:
    """Have the digests of everything that is written below a run's folder from here on kept in it.

    Raises:
        NotWrittenError: a full disk, a read-only mount.
    """
    if not (root / FILE).exists():
        try:
            _write(root, {})
        except OSError as error:
            raise cannot_write(root / FILE, error) from error


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Replace a file so that after a kill or a power cut it is the old one or the new one, whole; nothing else stays.

    Raises:
        NotWrittenError: it cannot be written: a full disk, a read-only mount.
    """
    # One process writes a run, so one name will do, and a killed writer's leftover is overwritten.
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
    """The system's error behind another: torch.save has one of its own once it closes what the disk did not take."""
    while error is not None and not isinstance(error, OSError):
        error = error.__context__
    return error


def cannot_write(path: Path, error: OSError) -> NotWrittenError:
    """Return the error for a file that cannot be written, with the way out."""
    return NotWrittenError(f"{path}: cannot be written ({error.strerror or error})")


def accept(root: Path, path: Path, new: Accepted) -> None:
    """Let a file below the run's folder be what has this length and digest, or what it is now.

    A log is to have its new beginning only, which it has already when this is called.
    """
    name = path.relative_to(root).as_posix()
    with FileLock(root / LOCK):
        known = _read(root)
        replaced = path.exists() and not _grows(path)
        now = [old for old in known.get(name, []) if replaced and _fits(path, old)]
        gone = [other for other in known if other.startswith("checkpoints/") and not _is_there(root / other)]
        _write(root, {other: of for other, of in known.items() if other not in gone} | {name: [*now, new]})


def check(path: Path, way_out: str) -> None:
    """Raise a RunError unless a file of a run is one that the run wrote.

    Args:
        way_out: what to do then.
    """
    if (root := root_of(path)) is None:
        return
    accepted = _read(root).get(path.relative_to(root).as_posix())
    try:
        if accepted is None or not path.exists() or any(_fits(path, of) for of in accepted):
            return
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror}); {way_out}") from error
    raise RunError(f"{path}: is damaged: its SHA-256 is not the one in {FILE}; {way_out}")


def refuse_strange(run: Path) -> None:
    """Raise a RunError where a pipe, a device or an endless text lies in a run's folder: reading would never end."""
    for folder, _, names in os.walk(run):
        for path in (Path(folder, name) for name in names):
            try:
                found = path.stat()
            except OSError:  # a link to nothing is missed where it is read
                continue
            if not stat.S_ISREG(found.st_mode):
                raise RunError(f"{path}: is a pipe, socket or device, which does not belong in a run; remove it")
            if found.st_size > MOST_BYTES and path.suffix in TEXTS:
                raise RunError(
                    f"{path}: has {found.st_size:,} bytes, more than any file of a run; restore or remove it"
                )


def root_of(path: Path) -> Path | None:
    """Return the run's folder that a file lies in, or None where nobody keeps digests."""
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
    """Whether a file is there, or about to be, which another thread may see to."""
    return _partial(path).exists() or path.exists()  # in this order, for one becomes the other


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
    way_out = "restore it; or remove it, after which nothing of this run is checked"
    try:
        content = read_document(file)
        files = content["files"]
        if hashlib.sha256(_canonical(files)).hexdigest() != content["sha256"]:
            raise ValueError("its own digest differs")
        return {name: [(int(length), str(digest)) for length, digest in of] for name, of in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise RunError(f"{file}: is damaged ({error}); {way_out}") from error


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
