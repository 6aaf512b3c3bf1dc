"""Find the current commit: the root names it, and so does a record of its own, each with a checksum."""

import json
from typing import Any

from pipeline.cache.attributes import COMMIT_ID, FORMAT, FORMAT_VERSION
from pipeline.cache.commits import REPAIR, Commit, read_commit
from pipeline.cache.files import canonical, read_checked, read_file, with_checksum, write_atomic
from pipeline.cache.paths import PRIVATE, ROOT_DOCUMENT, Cache
from pipeline.errors import CacheError


def current_commit(cache: Cache) -> Commit | None:
    """The current commit, None before the first.

    Raises:
        CacheError: the folder is no cache of ours, or its root or commit is damaged.
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
    if content != wanted and not _says_the_same(content, wanted):
        raise CacheError(f"{file}: damaged, it does not match commit {commit.id}; {REPAIR}")
    return commit


def _says_the_same(content: bytes, wanted: bytes) -> bool:
    from pipeline.cache.arrays import says_the_same  # zarr-python takes half a second, which a plan need not wait for

    return says_the_same(content, wanted)


def _named(cache: Cache, content: bytes) -> str:
    """The commit that the root names, before it is compared with that."""
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
    """Write the second record, once the root names the commit."""
    write_atomic(cache.head_file, head_record(commit))


def head_record(commit: Commit) -> bytes:
    """The content of the second record."""
    attributes = commit.attributes
    return with_checksum(canonical({"cache": attributes.cache, "commit": commit.id, "sequence": attributes.sequence}))


def recorded_head(cache: Cache) -> str | None:
    """The commit that was recorded beside the root, or else the one whose tables were copied last; None without."""
    try:
        found: Any = json.loads(read_checked(cache.head_file))["commit"]
    except (OSError, CacheError, ValueError, KeyError, TypeError):
        try:
            found = read_file(cache.copied_file).decode("ascii", "replace")
        except (OSError, CacheError):
            return None
    return found if isinstance(found, str) and COMMIT_ID.fullmatch(found) else None


def refuse_other_key(cache: Cache, key_digest: str) -> None:
    """Refuse a patient key other than the one the cache was begun with.

    Raises:
        CacheError: the ids would no longer be those of the slices that are there.
    """
    commit = current_commit(cache)
    if commit and key_digest and commit.private.patient_key not in ("", key_digest):
        raise CacheError(
            f"{cache}: was built with another patient key; give that key with --patient-key, or a new --out"
        )
