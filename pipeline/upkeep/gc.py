"""Remove what no kept commit uses: commits, tables, whole shards and whole arrays; it never repacks."""

import dataclasses
import shutil
import time
from calendar import timegm
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.cache import commits, layout
from pipeline.cache.commits import Commit
from pipeline.cache.files import ASIDE, PRIVATE
from pipeline.cache.head import current_commit
from pipeline.system import sync_folder

ARRAY_FOLDERS = ("images", "sums")


@dataclass(slots=True)
class Unused:
    """What may go.

    Attributes:
        commits: ids, the newest first.
        arrays: paths of whole arrays.
        shards: shard numbers, with their record and their part of every array.
        files: tables, ledgers, backups, lists of rejects and leftovers of killed writers.
        aside: what repairs moved aside; only where it was asked for, for nobody knows what it is needed for.
        size: of all of them, bytes.
        unfinished: shards of an interrupted build, which are kept.
    """

    commits: list[str] = field(default_factory=list)
    arrays: list[str] = field(default_factory=list)
    shards: list[int] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    aside: list[Path] = field(default_factory=list)
    size: int = 0
    unfinished: int = 0

    def counts(self) -> dict[str, int]:
        """How many of each kind may go, of those kinds of which there is one."""
        kinds: dict[str, Sized] = {
            "commits": self.commits,
            "arrays": self.arrays,
            "shards": self.shards,
            "other files": self.files,
            "files that repairs moved aside": self.aside,
        }
        return {kind: len(found) for kind, found in kinds.items() if found}


def find_unused(root: Path, older_than_s: float, now: float, *, aside: bool = False) -> Unused:
    """Find what no kept commit uses. Kept are the current one, and those that were current `older_than_s` ago or later.

    Args:
        now: seconds since 1970.
        aside: whether what repairs moved aside is unused too.

    Raises:
        CacheError: a commit that is kept, or its ledger, is damaged.
    """
    head = current_commit(root)
    every = commits.chain(root, head)
    ends = replaced_at([_seconds(commit) for commit in every], now)
    kept = [commit for commit, until in zip(every, ends, strict=True) if commit is head or until > now - older_than_s]
    pending = layout.read_pending(root)
    if pending and layout.is_committed(pending, head):
        pending = None
    planned = set(pending.shards) if pending else set()
    live = {shard for commit in kept for shard in commits.read_ledger(root, commit.id).live_slots()}
    found = Unused(commits=[commit.id for commit in every if commit not in kept], unfinished=len(planned - live))
    found.arrays = sorted(_arrays(root) - _named(kept) - (_arrays(root) - _named(every) if pending else set()))
    found.shards = sorted(_shards(root) - live - planned)
    needed = {path for commit in kept for path in _files_of(root, commit)}
    found.files = sorted({path for path in _all_files(root) if path not in needed} | set(layout.partials(root)))
    found.aside = set_aside(root) if aside else []
    found.size = sum(_size(path) for path in _paths(root, found))
    return found


def set_aside(root: Path) -> list[Path]:
    """The files that repairs moved aside, for they could not be placed."""
    return sorted(path for path in (root / PRIVATE / ASIDE).rglob("*") if path.is_symlink() or not path.is_dir())


def replaced_at(created: Sequence[float], now: float) -> list[float]:
    """When each commit stopped being the current one, in seconds since 1970; `now` where that cannot be told.

    A commit's own time is not believed where a clock was wrong: before that of an earlier commit, or in the future.

    Args:
        created: of the commits in the order of their sequence, the newest first.
    """
    ends = [now] * len(created)
    latest = float("-inf")
    for place in reversed(range(len(created))):
        if latest <= created[place] <= now:
            latest = created[place]
            for older in range(place + 1, len(created)):
                if ends[older] != now:
                    break
                ends[older] = latest
    return ends


def _seconds(commit: Commit) -> float:
    return timegm(time.strptime(commit.attributes.created, "%Y-%m-%dT%H:%M:%SZ"))


def _named(commits: Iterable[Commit]) -> set[str]:
    return {path for commit in commits for path in commit.arrays}


def _arrays(root: Path) -> set[str]:
    return {f"{folder}/{path.name}" for folder in ARRAY_FOLDERS for path in (root / folder).glob("*") if path.is_dir()}


def _shards(root: Path) -> set[int]:
    """Every shard that has a record, or a file in any array."""
    chunks = (path.name for name in _arrays(root) for path in (root / name / "c").glob("*"))
    return {int(name) for name in chunks if name.isdigit()} | set(layout.recorded_shards(root))


def _files_of(root: Path, commit: Commit) -> tuple[Path, ...]:
    return (
        *commits.own_files(root, commit.id),
        commits.table_file(root, commit),
        commits.rejects_file(root, commit),
    )


def _all_files(root: Path) -> Iterator[Path]:
    folders = (
        root / "commits",
        root / "tables",
        *(root / PRIVATE / name for name in ("rejects", "ledgers", "spares", "private")),
    )
    for folder in folders:
        yield from folder.glob("[!.]*")


def _paths(root: Path, found: Unused) -> Iterator[Path]:
    """Files and folders that go, each once."""
    yield from found.files
    yield from found.aside
    yield from (root / array for array in found.arrays)
    gone = set(found.arrays)
    for shard in found.shards:
        yield layout.record_file(root, shard)
        yield layout.record_copy_file(root, shard)
        yield from (root / name / "c" / str(shard) for name in _arrays(root) - gone)


def _size(path: Path) -> int:
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size if path.exists() else 0


def remove(root: Path, unused: Unused) -> None:
    """Remove it, in an order that leaves a whole cache wherever it is stopped. Only the lock's holder may call it.

    Commits go before what they name, and a record before what it vouches for.
    """
    for commit in unused.commits:
        commits.remove_commit(root, commit)
    for path in unused.files:
        path.unlink(missing_ok=True)
    if unused.aside:
        shutil.rmtree(root / PRIVATE / ASIDE)
    for shard in unused.shards:
        layout.remove_record(root, shard)
    _forget_arrays(root, {path.split("/")[1] for path in unused.arrays})
    if (root / PRIVATE / "shards").is_dir():
        sync_folder(root / PRIVATE / "shards")
    for path in _paths(root, unused):
        if path.is_dir():
            shutil.rmtree(path)


def _forget_arrays(root: Path, names: set[str]) -> None:
    """Take arrays out of the records that know them, so that they count as not converted."""
    for shard in layout.recorded_shards(root) if names else ():
        record = layout.read_record(root, shard)
        if record and names & record.arrays.keys():
            left = {name: array for name, array in record.arrays.items() if name not in names}
            layout.write_record(root, dataclasses.replace(record, arrays=left))
