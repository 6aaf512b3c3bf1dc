"""Remove what no kept commit uses: commits, tables, shards and arrays; shards are never rewritten."""

import dataclasses
import shutil
import time
from calendar import timegm
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.cache import commits
from pipeline.cache.commits import Commit
from pipeline.cache.done_records import read_record, remove_record, write_record
from pipeline.cache.head import current_commit
from pipeline.cache.paths import ARRAYS, Cache
from pipeline.cache.pending import is_committed, read_pending
from pipeline.system import sync_folder


@dataclass(slots=True)
class Unused:
    """What no kept commit uses and `remove` may delete.

    Attributes:
        commits: ids, newest first.
        arrays: paths of arrays.
        shards: numbers of shards; each stands for its record and its files in every array.
        files: files of commits, such as tables, ledgers and backups, and temporary files of killed writers.
        aside: files that repairs moved aside; empty unless requested, since someone may still need them.
        size: total size, bytes.
        unfinished: number of shards of an interrupted build, which are kept.
    """

    commits: list[str] = field(default_factory=list)
    arrays: list[str] = field(default_factory=list)
    shards: list[int] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    aside: list[Path] = field(default_factory=list)
    size: int = 0
    unfinished: int = 0

    def counts(self) -> dict[str, int]:
        """Return the number of items of each kind, omitting empty kinds."""
        kinds: dict[str, Sized] = {
            "commits": self.commits,
            "arrays": self.arrays,
            "shards": self.shards,
            "other files": self.files,
            "files that repairs moved aside": self.aside,
        }
        return {kind: len(found) for kind, found in kinds.items() if found}


def find_unused(cache: Cache, older_than_s: float, now: float, *, aside: bool = False) -> Unused:
    """Find what no kept commit uses; the commits that were current within the last `older_than_s` seconds are kept.

    Args:
        now: seconds since 1970.
        aside: whether to include files that repairs moved aside.

    Raises:
        CacheError: a commit, the ledger of a kept commit, or the pending plan is damaged.
    """
    head = current_commit(cache)
    every = commits.chain(cache, head)
    ends = replaced_at([_seconds(commit) for commit in every], now)
    kept = [commit for commit, until in zip(every, ends, strict=True) if commit is head or until > now - older_than_s]
    pending = read_pending(cache)
    if pending and is_committed(pending, head):
        pending = None
    planned = set(pending.shards) if pending else set()
    live = {shard for commit in kept for shard in commits.read_ledger(cache, commit.id).live_slots()}
    found = Unused(commits=[commit.id for commit in every if commit not in kept], unfinished=len(planned - live))
    found.arrays = sorted(_arrays(cache) - _named(kept) - (_arrays(cache) - _named(every) if pending else set()))
    found.shards = sorted(_shards(cache) - live - planned)
    needed = {path for commit in kept for path in _files_of(cache, commit)}
    found.files = sorted({path for path in _all_files(cache) if path not in needed} | set(cache.partials()))
    found.aside = set_aside(cache) if aside else []
    found.size = sum(_size(path) for path in _paths(cache, found))
    return found


def set_aside(cache: Cache) -> list[Path]:
    """Return the files that repairs moved aside because they could not place them."""
    return sorted(path for path in cache.aside.rglob("*") if path.is_symlink() or not path.is_dir())


def replaced_at(created: Sequence[float], now: float) -> list[float]:
    """Return when each commit was replaced as the current one, in seconds since 1970; `now` if that is unknown.

    A time of creation that is before that of an earlier commit, or in the future, comes from a wrong clock and is
    ignored.

    Args:
        created: times of creation, in seconds since 1970, newest commit first.
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


def _arrays(cache: Cache) -> set[str]:
    return {f"{folder}/{path.name}" for folder in ARRAYS for path in (cache.root / folder).glob("*") if path.is_dir()}


def _shards(cache: Cache) -> set[int]:
    """Return every shard that has a record, or a file in any array."""
    chunks = (path.name for name in _arrays(cache) for path in cache.shards_folder(name).glob("*"))
    return {int(name) for name in chunks if name.isdigit()} | set(cache.recorded_shards())


def _files_of(cache: Cache, commit: Commit) -> tuple[Path, ...]:
    return (
        *cache.own_files(commit.id),
        cache.table_file(commit.attributes.table_digest),
        cache.rejects_file(commit.private.rejects_digest),
    )


def _all_files(cache: Cache) -> Iterator[Path]:
    for folder in cache.folders_of_commits():
        yield from folder.glob("[!.]*")


def _paths(cache: Cache, found: Unused) -> Iterator[Path]:
    """Yield every file and folder to delete, each once."""
    yield from found.files
    yield from found.aside
    yield from (cache.root / array for array in found.arrays)
    gone = set(found.arrays)
    for shard in found.shards:
        yield cache.record_file(shard)
        yield cache.record_copy_file(shard)
        yield from (cache.shards_folder(name) / str(shard) for name in _arrays(cache) - gone)


def _size(path: Path) -> int:
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size if path.exists() else 0


def remove(cache: Cache, unused: Unused) -> None:
    """Delete what is unused. Only the holder of the lock may call it.

    The cache stays intact if this is interrupted: a commit is deleted before the files that it refers to, and a
    done-record before the images that it describes.
    """
    for commit in unused.commits:
        commits.remove_commit(cache, commit)
    for path in unused.files:
        path.unlink(missing_ok=True)
    if unused.aside:
        shutil.rmtree(cache.aside)
    for shard in unused.shards:
        remove_record(cache, shard)
    _forget_arrays(cache, {path.split("/")[1] for path in unused.arrays})
    if cache.records_folder.is_dir():
        sync_folder(cache.records_folder)
    for path in _paths(cache, unused):
        if path.is_dir():
            shutil.rmtree(path)


def _forget_arrays(cache: Cache, names: set[str]) -> None:
    """Remove arrays from the records that list them, so that later builds convert them again."""
    for shard in cache.recorded_shards() if names else ():
        record = read_record(cache, shard)
        if record and names & record.arrays.keys():
            left = {name: array for name, array in record.arrays.items() if name not in names}
            write_record(cache, dataclasses.replace(record, arrays=left))
