"""The commits of a cache: what one is, where its parts lie, and how they are read and checked."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.cache.attributes import COMMIT_ID, DIGEST, Attributes, Private, Terms, matching, parse_attributes
from pipeline.cache.documents import parse_arrays, zarr_documents
from pipeline.cache.files import PRIVATE, canonical, read_checked, read_file, sha256, with_checksum, write_atomic
from pipeline.cache.ledger import Ledger, empty_ledger
from pipeline.cache.parsing import parse
from pipeline.errors import CacheError
from pipeline.system import sync_folder

REPAIR = "run: pipeline verify --repair"


@dataclass(frozen=True, slots=True)
class Commit:
    """One state of the cache that readers may see.

    Attributes:
        attributes: of the root group, as in docs/cache_format.md.
        arrays: path -> the array's zarr.json.
        private: what only builds use: the commits before it, fingerprints, settings, counters.
    """

    attributes: Attributes
    arrays: Mapping[str, Any]
    private: Private

    @property
    def id(self) -> str:
        return self.attributes.commit

    @property
    def terms(self) -> Terms:
        return self.attributes.terms

    def content(self) -> bytes:
        """The content of `commits/<id>.json`."""
        document = {
            "attributes": self.attributes.as_json(),
            "arrays": self.arrays,
            "private": self._private_of_record(),
        }
        return canonical(document)

    def private_content(self) -> bytes:
        """The content of the private part's own file, which format version 1 did not have."""
        return canonical(self.private.as_json())

    def documents(self) -> dict[str, bytes]:
        """Every zarr.json of the commit by its path; the root's is the commit itself."""
        return zarr_documents(self.attributes.as_json(), self.arrays)

    def _private_of_record(self) -> Any:
        """What the public part says of the private one: its digest; in format version 1 all of it."""
        return sha256(self.private_content()) if self.attributes.cache else self.private.as_json()


# --- where its parts lie -------------------------------------------------------------------------------------------


def commits_folder(root: Path) -> Path:
    """Return the folder of the commits."""
    return root / "commits"


def commit_file(root: Path, commit: str) -> Path:
    """Return the file of a commit."""
    return commits_folder(root) / f"{matching(COMMIT_ID, commit, 'commit id')}.json"


def private_file(root: Path, commit: str) -> Path:
    """Return the file of a commit's private part."""
    return root / PRIVATE / "private" / f"{matching(COMMIT_ID, commit, 'commit id')}.json"


def table_file(root: Path, commit: Commit) -> Path:
    """Return the file of a commit's table, named by its content."""
    return root / "tables" / f"{matching(DIGEST, commit.attributes.table_digest, 'digest')}.csv"


def rejects_file(root: Path, commit: Commit) -> Path:
    """Return the file of a commit's rejects, named by its content."""
    return root / PRIVATE / "rejects" / f"{matching(DIGEST, commit.private.rejects_digest, 'digest')}.csv"


def ledger_file(root: Path, commit: str) -> Path:
    """Return the file of a commit's ledger."""
    return root / PRIVATE / "ledgers" / matching(COMMIT_ID, commit, "commit id")


def backup_file(root: Path, commit: str) -> Path:
    """Return the file of a commit's backup."""
    return root / PRIVATE / "spares" / f"{matching(COMMIT_ID, commit, 'commit id')}.zip"


def own_files(root: Path, commit: str) -> tuple[Path, ...]:
    """The files that only this commit has, its public one first; tables and lists of rejects may serve others too."""
    public, private = commit_file(root, commit), private_file(root, commit)
    return public, private, ledger_file(root, commit), backup_file(root, commit)


# --- reading -------------------------------------------------------------------------------------------------------


def read_table(root: Path, commit: Commit) -> bytes:
    """The table of a commit.

    Raises:
        CacheError: missing or damaged.
    """
    return _read_digested(table_file(root, commit), commit.attributes.table_digest)


def read_rejects(root: Path, commit: Commit) -> bytes:
    """The list of rejects of a commit.

    Raises:
        CacheError: missing or damaged.
    """
    return _read_digested(rejects_file(root, commit), commit.private.rejects_digest)


def _read_digested(path: Path, digest: str) -> bytes:
    try:
        content = read_file(path)
    except FileNotFoundError:
        raise CacheError(f"{path}: missing; {REPAIR}") from None
    if sha256(content) != digest:
        raise CacheError(f"{path}: damaged, its digest does not match; {REPAIR}")
    return content


def read_commit(root: Path, commit: str) -> Commit:
    """Read one commit and check that its content makes its id.

    Raises:
        CacheError: missing or damaged.
    """
    file = commit_file(root, commit)
    try:
        content = read_file(file)
    except FileNotFoundError:
        raise CacheError(f"{file}: missing; {REPAIR}") from None
    private = private_file(root, commit)
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
    """The private part is not the one that the commit names."""


def parse_commit(content: bytes, private: bytes, commit: str) -> Commit:
    """The commit that a file's content and its private part are, every path and type in it checked.

    Args:
        private: of a commit of format version 1 not looked at.

    Raises:
        LostPrivateError: only the private part is not.
        ValueError: they are not, bit for bit, the content of the commit of this id.
    """
    try:
        stored = json.loads(content)
        if stored.keys() != {"attributes", "arrays", "private"} or canonical(stored) != content:
            raise ValueError("not in the form of a commit")
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


def make_commit(attributes: Attributes, arrays: Mapping[str, Any], private: Private) -> Commit:
    """Put a commit together and give it the id that its content makes."""
    unnamed = Commit(attributes, arrays, private)
    stored = json.loads(unnamed.content())
    return Commit(dataclasses.replace(attributes, commit=_id_of(**stored)), arrays, private)


def _id_of(attributes: Mapping[str, Any], arrays: Any, private: Any) -> str:
    """16 hex digits of the SHA-256 of all but the id itself."""
    unnamed = {key: value for key, value in attributes.items() if key != "commit"}
    return sha256(canonical([unnamed, arrays, private]))[:16]


def chain(root: Path, head: Commit | None) -> list[Commit]:
    """The kept commits, from the current one back.

    Raises:
        CacheError: one of them is damaged.
    """
    if head is None:
        return []
    return [head, *(read_commit(root, before) for before in kept_before(root, head))]


def kept_before(root: Path, commit: Commit) -> list[str]:
    """Ids of the commits before this one that are still there, the newest first."""
    return [before for before in commit.private.before if commit_file(root, before).exists()]


def commit_ids(root: Path) -> set[str]:
    """Every commit that has a file, whether it ever became the current one or not."""
    return {path.stem for path in commits_folder(root).glob("*.json") if COMMIT_ID.fullmatch(path.stem)}


def remove_commit(root: Path, commit: str) -> None:
    """Take a commit away, durably, and then what only it has; tables may serve others and stay."""
    for path in own_files(root, commit):
        if path.exists():
            path.unlink()
            sync_folder(path.parent)


# --- its ledger ----------------------------------------------------------------------------------------------------


def read_ledger(root: Path, commit: str | None) -> Ledger:
    """The ledger of a commit, empty before the first.

    Raises:
        CacheError: missing or damaged.
    """
    if commit is None:
        return empty_ledger()
    file = ledger_file(root, commit)
    try:
        return Ledger.decode(read_checked(file))
    except FileNotFoundError:
        raise CacheError(f"{file}: missing; {REPAIR}") from None
    except ValueError as error:
        raise CacheError(f"{file}: damaged, {error}; {REPAIR}") from error


def write_ledger(root: Path, commit: str, ledger: Ledger) -> None:
    """Write a commit's ledger, with its checksum."""
    write_atomic(ledger_file(root, commit), with_checksum(ledger.encode()))
