"""This file holds the commits of a cache: reading them, publishing one, their order, and the spare of each."""

import dataclasses
import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.cache.documents import ROOT_DOCUMENT, zarr_documents
from pipeline.cache.files import PRIVATE, canonical, read_sealed, seal, sha256, write_atomic
from pipeline.cache.ledger import Ledger, empty_ledger
from pipeline.errors import CacheError
from pipeline.system import sync_folder

FORMAT = "ich-slices"
FORMAT_VERSION = 1
REPAIR = "run: pipeline verify --repair"


@dataclass(frozen=True, slots=True)
class Commit:
    """One state of the cache that readers may see.

    Attributes:
        attributes: of the root group, as in docs/cache_format.md.
        arrays: path -> the array's zarr.json.
        private: what only builds use: the commits before it, fingerprints, settings, counters.
    """

    attributes: Mapping[str, Any]
    arrays: Mapping[str, Any]
    private: Mapping[str, Any]

    @property
    def id(self) -> str:
        return str(self.attributes["commit"])

    def content(self) -> bytes:
        return canonical(dataclasses.asdict(self))


def commits_folder(root: Path) -> Path:
    return root / "commits"


def commit_file(root: Path, commit: str) -> Path:
    return commits_folder(root) / f"{commit}.json"


def table_file(root: Path, commit: Commit) -> Path:
    return root / str(commit.attributes["metadata"]["file"])


def rejects_file(root: Path, commit: Commit) -> Path:
    return root / PRIVATE / "rejects" / f"{commit.private['rejects_digest']}.csv"


def read_table(root: Path, commit: Commit) -> bytes:
    """The table of a commit.

    Raises:
        CacheError: missing or damaged.
    """
    return _read_digested(table_file(root, commit), commit.attributes["metadata"]["digest"])


def read_rejects(root: Path, commit: Commit) -> bytes:
    """The list of rejects of a commit.

    Raises:
        CacheError: missing or damaged.
    """
    return _read_digested(rejects_file(root, commit), commit.private["rejects_digest"])


def _read_digested(path: Path, digest: str) -> bytes:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise CacheError(f"{path}: missing; {REPAIR}") from None
    if sha256(content) != digest:
        raise CacheError(f"{path}: damaged, its digest does not match; {REPAIR}")
    return content


def ledger_file(root: Path, commit: str) -> Path:
    return root / PRIVATE / "ledgers" / commit


def spare_file(root: Path, commit: str) -> Path:
    return root / PRIVATE / "spares" / f"{commit}.zip"


def copied_file(root: Path) -> Path:
    return root / PRIVATE / "copied"


def head_id(root: Path) -> str | None:
    """The current commit's id, None before the first commit.

    Raises:
        CacheError: the folder is no cache of ours, or its root is damaged.
    """
    file = root / ROOT_DOCUMENT
    try:
        attributes = json.loads(file.read_bytes())["attributes"]
        if attributes["format"] != FORMAT:
            raise KeyError("format")
        version, commit = int(attributes["format_version"]), str(attributes["commit"])
    except FileNotFoundError:
        _refuse_foreign(root)
        return None
    except NotADirectoryError:
        raise CacheError(f"{root}: is a file, not a cache folder; give another --out") from None
    except (ValueError, KeyError, TypeError) as error:
        hint = REPAIR if (root / PRIVATE).is_dir() else "give another --out"
        raise CacheError(f"{file}: is not the root of a cache of this program, or is damaged; {hint}") from error
    if version > FORMAT_VERSION:
        raise CacheError(f"{root}: format version {version} is newer than this program's {FORMAT_VERSION}; update it")
    return commit


def _refuse_foreign(root: Path) -> None:
    if not root.is_dir():
        return
    if not (root / PRIVATE).is_dir() and any(root.iterdir()):
        raise CacheError(f"{root}: holds other files than a cache; give an empty or new folder for --out")
    if copied_file(root).exists():
        raise CacheError(f"{root / ROOT_DOCUMENT}: missing; {REPAIR}")


def head(root: Path) -> Commit | None:
    """The current commit, None before the first."""
    commit = head_id(root)
    return read_commit(root, commit) if commit else None


def read_commit(root: Path, commit: str) -> Commit:
    """Read one commit and check that its content makes its id.

    Raises:
        CacheError: missing or damaged.
    """
    file = commit_file(root, commit)
    try:
        return parse_commit(file.read_bytes(), commit)
    except FileNotFoundError:
        raise CacheError(f"{file}: missing; {REPAIR}") from None
    except ValueError as error:
        raise CacheError(f"{file}: damaged, {error}; {REPAIR}") from error


def parse_commit(content: bytes, commit: str) -> Commit:
    """The commit that a file's content is.

    Raises:
        ValueError: it is not, bit for bit, the content of the commit of this id.
    """
    try:
        found = Commit(**json.loads(content))
        whole = found.id == commit == _id_of(found) and found.content() == content
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"not a commit ({error})") from error
    if not whole:
        raise ValueError("its digest does not match")
    return found


def make_commit(attributes: Mapping[str, Any], arrays: Mapping[str, Any], private: Mapping[str, Any]) -> Commit:
    """Put a commit together and give it the id that its content makes."""
    unnamed = Commit({**attributes, "commit": ""}, arrays, private)
    return Commit({**attributes, "commit": _id_of(unnamed)}, arrays, private)


def _id_of(commit: Commit) -> str:
    """16 hex digits of the SHA-256 of all but the id itself."""
    attributes = {key: value for key, value in commit.attributes.items() if key != "commit"}
    return sha256(canonical([attributes, commit.arrays, commit.private]))[:16]


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
    return [before for before in commit.private["before"] if commit_file(root, before).exists()]


def commit_ids(root: Path) -> set[str]:
    """Every commit that has a file, whether it ever became the current one or not."""
    return {path.stem for path in commits_folder(root).glob("*.json")}


def remove_commit(root: Path, commit: str) -> None:
    """Take a commit away, durably, and then what only it has; tables may serve others and stay."""
    for path in (commit_file(root, commit), spare_file(root, commit), ledger_file(root, commit)):
        if path.exists():
            path.unlink()
            sync_folder(path.parent)


def publish_commit(root: Path, commit: Commit, table: bytes, rejects: bytes, ledger: Ledger) -> None:
    """Make a commit the one that readers see, in the order of docs/cache_format.md; the last write is the root."""
    documents = zarr_documents(commit.attributes, commit.arrays)
    for path, content in documents.items():
        if path != ROOT_DOCUMENT:
            write_atomic(root / path, content)
    write_atomic(table_file(root, commit), table)
    write_atomic(rejects_file(root, commit), rejects)
    write_ledger(root, commit.id, ledger)
    write_atomic(spare_file(root, commit.id), encode_spare(commit, table, rejects, ledger))
    write_atomic(commit_file(root, commit.id), commit.content())
    write_atomic(root / ROOT_DOCUMENT, documents[ROOT_DOCUMENT])
    mend_copies(root, commit)


def mend_copies(root: Path, commit: Commit) -> bool:
    """Make metadata.csv and rejects.csv copies of the current commit's tables; says whether they were not.

    A marker names the commit that was copied last, so that an unchanged build reads neither.
    """
    marker = copied_file(root)
    if marker.exists() and marker.read_bytes() == commit.id.encode():
        return False
    write_atomic(root / "metadata.csv", read_table(root, commit))
    write_atomic(root / "rejects.csv", read_rejects(root, commit))
    write_atomic(marker, commit.id.encode())
    return True


def read_ledger(root: Path, commit: str | None) -> Ledger:
    """The ledger of a commit, empty before the first.

    Raises:
        CacheError: missing or damaged.
    """
    if commit is None:
        return empty_ledger()
    try:
        return Ledger.decode(read_sealed(ledger_file(root, commit)))
    except FileNotFoundError:
        raise CacheError(f"{ledger_file(root, commit)}: missing; {REPAIR}") from None


def write_ledger(root: Path, commit: str, ledger: Ledger) -> None:
    write_atomic(ledger_file(root, commit), seal(ledger.encode()))


@dataclass(frozen=True, slots=True)
class Spare:
    """A second copy of what a commit is, from which `verify --repair` mends the first."""

    commit: bytes
    table: bytes
    rejects: bytes
    ledger: bytes


def encode_spare(commit: Commit, table: bytes, rejects: bytes, ledger: Ledger) -> bytes:
    """A sealed zip of commit, table, rejects and ledger; a few dozen bytes a slice."""
    spare = Spare(commit.content(), table, rejects, ledger.encode())
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for part in dataclasses.fields(Spare):
            archive.writestr(part.name, getattr(spare, part.name))
    return seal(file.getvalue())


def read_spare(root: Path, commit: str) -> Spare | None:
    """The spare of a commit, None where it is missing or damaged."""
    try:
        content = read_sealed(spare_file(root, commit))
    except (FileNotFoundError, CacheError):
        return None
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return Spare(**{part.name: archive.read(part.name) for part in dataclasses.fields(Spare)})


def refuse_other_key(root: Path, key_digest: str) -> None:
    """Refuse a patient key other than the one the cache was begun with.

    Raises:
        CacheError: the ids would no longer be those of the slices that are there.
    """
    commit = head(root)
    if commit and key_digest and commit.private["patient_key"] not in ("", key_digest):
        raise CacheError(
            f"{root}: was built with another patient key; give that one with --patient-key, or a new --out"
        )
