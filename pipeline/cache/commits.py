"""The commits of a cache: what a commit consists of, and how its parts are read and checked."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.cache.attributes import Attributes, Private, Terms, parse_attributes
from pipeline.cache.documents import parse_arrays, zarr_documents
from pipeline.cache.files import canonical, read_checked, read_file, sha256, with_checksum, write_atomic
from pipeline.cache.ledger import Ledger, empty_ledger
from pipeline.cache.parsing import parse
from pipeline.cache.paths import Cache
from pipeline.errors import CacheError
from pipeline.planning.stages import ArrayPath
from pipeline.system import sync_folder

REPAIR = "run: pipeline verify --repair"


@dataclass(frozen=True, slots=True)
class Commit:
    """One published state of the cache.

    Attributes:
        attributes: of the root group, as in docs/cache_format.md.
        arrays: path -> the array's zarr.json.
        private: what only builds use: earlier commits, fingerprints, settings, counters.
    """

    attributes: Attributes
    arrays: Mapping[ArrayPath, Any]
    private: Private

    @property
    def id(self) -> str:
        return self.attributes.commit

    @property
    def terms(self) -> Terms:
        return self.attributes.terms

    def content(self) -> bytes:
        """Return the content of `commits/<id>.json`."""
        document = {
            "attributes": self.attributes.as_json(),
            "arrays": self.arrays,
            "private": self._private_of_record(),
        }
        return canonical(document)

    def private_content(self) -> bytes:
        """Return the content of the private part's file, which format version 1 did not have."""
        return canonical(self.private.as_json())

    def documents(self) -> dict[str, bytes]:
        """Return every zarr.json of the commit, by path; that of the root is the commit itself."""
        return zarr_documents(self.attributes.as_json(), self.arrays)

    def _private_of_record(self) -> Any:
        """Return how the public part records the private one: by its digest, or in full in format version 1."""
        return sha256(self.private_content()) if self.attributes.cache else self.private.as_json()


# --- reading -------------------------------------------------------------------------------------------------------


def read_table(cache: Cache, commit: Commit) -> bytes:
    """Read the metadata table of a commit.

    Raises:
        CacheError: it is missing or damaged.
    """
    return _read_digested(cache.table_file(commit.attributes.table_digest), commit.attributes.table_digest)


def read_rejects(cache: Cache, commit: Commit) -> bytes:
    """Read the list of rejects of a commit.

    Raises:
        CacheError: it is missing or damaged.
    """
    return _read_digested(cache.rejects_file(commit.private.rejects_digest), commit.private.rejects_digest)


def _read_digested(path: Path, digest: str) -> bytes:
    try:
        content = read_file(path)
    except FileNotFoundError:
        raise CacheError(f"{path}: missing; {REPAIR}") from None
    if sha256(content) != digest:
        raise CacheError(f"{path}: damaged, its digest does not match; {REPAIR}")
    return content


def read_commit(cache: Cache, commit: str) -> Commit:
    """Read one commit and check that its content matches its id.

    Raises:
        CacheError: it is missing or damaged.
    """
    file = cache.commit_file(commit)
    try:
        content = read_file(file)
    except FileNotFoundError:
        raise CacheError(f"{file}: missing; {REPAIR}") from None
    private = cache.private_file(commit)
    try:
        hidden = read_file(private)
    except FileNotFoundError:
        hidden = b""
    try:
        return parse_commit(content, hidden, commit)
    except LostPrivateError as error:
        raise CacheError(f"{private}: {'damaged' if hidden else 'missing'}; {REPAIR}") from error
    except ValueError as error:
        raise CacheError(f"{file}: damaged, {error}; {REPAIR}") from error


class LostPrivateError(ValueError):
    """The private part does not match the digest in the commit."""


def parse_commit(content: bytes, private: bytes, commit: str) -> Commit:
    """Parse a commit from the contents of its public and private files, and check every path and type in it.

    Args:
        content: of the commit's public file.
        private: content of its private file; ignored for a commit of format version 1.
        commit: the expected id.

    Raises:
        LostPrivateError: the public part is valid, but the private part does not match it.
        ValueError: the content is not, bit for bit, that of the commit with this id.
    """
    try:
        stored = json.loads(content)
        if stored.keys() != {"attributes", "arrays", "private"} or canonical(stored) != content:
            raise ValueError("it does not have the form of a commit")
        attributes = parse_attributes(stored["attributes"])
        if not attributes.commit == commit == _id_of(**stored):
            raise ValueError("its digest does not match")
        hidden = _parse_private(stored["private"], private if attributes.cache else None)
        found = Commit(attributes, parse_arrays(stored["arrays"], attributes.terms), hidden)
    except LostPrivateError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"not a commit ({' '.join(str(error).split())[:200]})") from error
    return found


def _parse_private(recorded: Any, content: bytes | None) -> Private:
    if content is None:
        return parse(Private, {"choices": None, **recorded}, "private")
    if sha256(content) != recorded:
        raise LostPrivateError("the private part of the commit is lost")
    return parse(Private, {"choices": None, **json.loads(content)}, "private")


def make_commit(attributes: Attributes, arrays: Mapping[ArrayPath, Any], private: Private) -> Commit:
    """Assemble a commit and give it the id that follows from its content."""
    unnamed = Commit(attributes, arrays, private)
    stored = json.loads(unnamed.content())
    return Commit(dataclasses.replace(attributes, commit=_id_of(**stored)), arrays, private)


def _id_of(attributes: Mapping[str, Any], arrays: Any, private: Any) -> str:
    """Return the first 16 hex digits of the SHA-256 of everything but the id itself."""
    unnamed = {key: value for key, value in attributes.items() if key != "commit"}
    return sha256(canonical([unnamed, arrays, private]))[:16]


def chain(cache: Cache, head: Commit | None) -> list[Commit]:
    """Return the kept commits, newest first, starting with `head`.

    Raises:
        CacheError: one of them is damaged.
    """
    if head is None:
        return []
    return [head, *(read_commit(cache, before) for before in kept_before(cache, head))]


def kept_before(cache: Cache, commit: Commit) -> list[str]:
    """Return the ids of the earlier commits that still exist, newest first."""
    return [before for before in commit.private.before if cache.commit_file(before).exists()]


def remove_commit(cache: Cache, commit: str) -> None:
    """Durably remove a commit, and then the files that belong to it alone; tables stay, as others may share them."""
    for path in cache.own_files(commit):
        if path.exists():
            path.unlink()
            sync_folder(path.parent)


# --- ledgers -------------------------------------------------------------------------------------------------------


def read_ledger(cache: Cache, commit: str | None) -> Ledger:
    """Read the ledger of a commit; return an empty one if there is no commit yet.

    Raises:
        CacheError: it is missing or damaged.
    """
    if commit is None:
        return empty_ledger()
    file = cache.ledger_file(commit)
    try:
        return Ledger.decode(read_checked(file))
    except FileNotFoundError:
        raise CacheError(f"{file}: missing; {REPAIR}") from None
    except ValueError as error:
        raise CacheError(f"{file}: damaged, {error}; {REPAIR}") from error


def write_ledger(cache: Cache, commit: str, ledger: Ledger) -> None:
    """Write a commit's ledger, with a checksum."""
    write_atomic(cache.ledger_file(commit), with_checksum(ledger.encode()))
