"""Find the current commit, which the root and a separate record both name, each protected by a checksum."""

import json
from typing import Any

from pipeline.cache.attributes import COMMIT_ID, FORMAT, FORMAT_VERSION
from pipeline.cache.commits import REPAIR, Commit, read_commit
from pipeline.cache.files import canonical, read_checked, read_file, with_checksum, write_atomic
from pipeline.cache.paths import PRIVATE, ROOT_DOCUMENT, Cache
from pipeline.errors import CacheError


def current_commit(cache: Cache) -> Commit | None:
    """Return the current commit, None before the first one.

    Raises:
        CacheError: the folder is not a cache of this program, or its root or commit is damaged.
    """
    file = cache.root_document
    try:
        content = read_file(file)
    except FileNotFoundError:
        _refuse_foreign(cache)
        return None
    except NotADirectoryError:
        raise CacheError(f"{cache}: is a file, not a cache folder; give another --out") from None
    commit = read_commit(cache, _named(cache, content))
    wanted = commit.documents()[ROOT_DOCUMENT]
    if content != wanted and not _is_equivalent(content, wanted):
        raise CacheError(f"{file}: damaged, it does not match commit {commit.id}; {REPAIR}")
    return commit


def _is_equivalent(content: bytes, wanted: bytes) -> bool:
    from pipeline.cache.arrays import is_equivalent  # importing zarr-python takes half a second that a plan can save

    return is_equivalent(content, wanted)


def _named(cache: Cache, content: bytes) -> str:
    """Return the id of the commit that the root names, before the two are compared."""
    try:
        attributes = json.loads(content)["attributes"]
        if attributes["format"] != FORMAT:
            raise KeyError("format")
        version, commit = int(attributes["format_version"]), str(attributes["commit"])
        if version <= FORMAT_VERSION and not COMMIT_ID.fullmatch(commit):
            raise ValueError("commit")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        hint = REPAIR if cache.private.is_dir() else "give another --out"
        file = cache.root_document
        raise CacheError(f"{file}: is not the root of an ich-cache cache, or is damaged; {hint}") from error
    if version > FORMAT_VERSION:
        raise CacheError(
            f"{cache}: format version {version} is newer than this program's {FORMAT_VERSION}; update ich-cache"
        )
    if not cache.private.is_dir():
        raise CacheError(
            f"{cache}: was copied without its folder {PRIVATE}: it can be used for training, but not extended; copy "
            "that folder too, or build into a new --out"
        )
    return commit


def _refuse_foreign(cache: Cache) -> None:
    if not cache.root.is_dir():
        return
    if not cache.private.is_dir() and any(cache.root.iterdir()):
        raise CacheError(f"{cache}: holds files that do not belong to a cache; give an empty or new folder for --out")
    if cache.head_file.exists() or cache.copied_file.exists() or len(cache.commit_ids()) > 1:
        raise CacheError(f"{cache.root_document}: missing; {REPAIR}")


def record_head(cache: Cache, commit: Commit) -> None:
    """Write the second record of the current commit, after the root has been replaced."""
    write_atomic(cache.head_file, head_record(commit))


def head_record(commit: Commit) -> bytes:
    """Return the content of the second record."""
    attributes = commit.attributes
    return with_checksum(canonical({"cache": attributes.cache, "commit": commit.id, "sequence": attributes.sequence}))


def recorded_head(cache: Cache) -> str | None:
    """Return the commit in the second record, else the one whose tables were copied last, None if neither is known."""
    try:
        found: Any = json.loads(read_checked(cache.head_file))["commit"]
    except (OSError, CacheError, ValueError, KeyError, TypeError):
        try:
            found = read_file(cache.copied_file).decode("ascii", "replace")
        except (OSError, CacheError):
            return None
    return found if isinstance(found, str) and COMMIT_ID.fullmatch(found) else None


def refuse_other_key(cache: Cache, key_digest: str) -> None:
    """Refuse a patient key other than the one that the cache was first built with.

    Raises:
        CacheError: the key differs, so new patient ids would not match those of the slices already in the cache.
    """
    commit = current_commit(cache)
    if commit and key_digest and commit.private.patient_key not in ("", key_digest):
        raise CacheError(
            f"{cache}: was built with another patient key; give that key with --patient-key, or a new --out"
        )
