"""Find the current commit: the root names it, and so does a record of its own, each with a checksum."""

import json
from pathlib import Path
from typing import Any

from pipeline.cache.attributes import COMMIT_ID, FORMAT, FORMAT_VERSION
from pipeline.cache.commits import REPAIR, Commit, commit_ids, read_commit
from pipeline.cache.documents import ROOT_DOCUMENT
from pipeline.cache.files import PRIVATE, canonical, read_checked, read_file, with_checksum, write_atomic
from pipeline.errors import CacheError


def copied_file(root: Path) -> Path:
    """The file that names the commit whose tables were copied last."""
    return root / PRIVATE / "copied"


def head_file(root: Path) -> Path:
    """The second record of the current commit, with a checksum; the first is the root."""
    return root / PRIVATE / "head"


def current_commit(root: Path) -> Commit | None:
    """The current commit, None before the first.

    Raises:
        CacheError: the folder is no cache of ours, or its root or commit is damaged.
    """
    file = root / ROOT_DOCUMENT
    try:
        content = read_file(file)
    except FileNotFoundError:
        _refuse_foreign(root)
        return None
    except NotADirectoryError:
        raise CacheError(f"{root}: is a file, not a cache folder; give another --out") from None
    commit = read_commit(root, _named(root, content))
    wanted = commit.documents()[ROOT_DOCUMENT]
    if content != wanted and not _says_the_same(content, wanted):
        raise CacheError(f"{file}: damaged, it is not what commit {commit.id} says; {REPAIR}")
    return commit


def _says_the_same(content: bytes, wanted: bytes) -> bool:
    from pipeline.cache.arrays import says_the_same  # zarr-python takes half a second, which a plan need not wait for

    return says_the_same(content, wanted)


def _named(root: Path, content: bytes) -> str:
    """The commit that the root names, before it is compared with that."""
    try:
        attributes = json.loads(content)["attributes"]
        if attributes["format"] != FORMAT:
            raise KeyError("format")
        version, commit = int(attributes["format_version"]), str(attributes["commit"])
        if version <= FORMAT_VERSION and not COMMIT_ID.fullmatch(commit):
            raise ValueError("commit")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        hint = REPAIR if (root / PRIVATE).is_dir() else "give another --out"
        file = root / ROOT_DOCUMENT
        raise CacheError(f"{file}: is not the root of a cache of this program, or is damaged; {hint}") from error
    if version > FORMAT_VERSION:
        raise CacheError(
            f"{root}: format version {version} is newer than this program's {FORMAT_VERSION}; update ich-cache"
        )
    if not (root / PRIVATE).is_dir():
        raise CacheError(
            f"{root}: was copied without its folder {PRIVATE}: it can be trained from, but not built on; copy that "
            "folder too, or build into a new --out"
        )
    return commit


def _refuse_foreign(root: Path) -> None:
    if not root.is_dir():
        return
    if not (root / PRIVATE).is_dir() and any(root.iterdir()):
        raise CacheError(f"{root}: holds other files than a cache; give an empty or new folder for --out")
    if head_file(root).exists() or copied_file(root).exists() or len(commit_ids(root)) > 1:
        raise CacheError(f"{root / ROOT_DOCUMENT}: missing; {REPAIR}")


def record_head(root: Path, commit: Commit) -> None:
    """Write the second record, once the root names the commit."""
    write_atomic(head_file(root), head_record(commit))


def head_record(commit: Commit) -> bytes:
    """The content of the second record."""
    attributes = commit.attributes
    return with_checksum(canonical({"cache": attributes.cache, "commit": commit.id, "sequence": attributes.sequence}))


def recorded_head(root: Path) -> str | None:
    """The commit that was recorded beside the root, or else the one whose tables were copied last; None without."""
    try:
        found: Any = json.loads(read_checked(head_file(root)))["commit"]
    except (OSError, CacheError, ValueError, KeyError, TypeError):
        try:
            found = read_file(copied_file(root)).decode("ascii", "replace")
        except (OSError, CacheError):
            return None
    return found if isinstance(found, str) and COMMIT_ID.fullmatch(found) else None


def refuse_other_key(root: Path, key_digest: str) -> None:
    """Refuse a patient key other than the one the cache was begun with.

    Raises:
        CacheError: the ids would no longer be those of the slices that are there.
    """
    commit = current_commit(root)
    if commit and key_digest and commit.private.patient_key not in ("", key_digest):
        raise CacheError(
            f"{root}: was built with another patient key; give that one with --patient-key, or a new --out"
        )
