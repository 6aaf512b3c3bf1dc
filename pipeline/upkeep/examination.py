"""The result of examining a cache: which files are intact, damaged or unknown."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipeline.cache.commits import Commit
from pipeline.cache.files import read_regular
from pipeline.cache.ledger import Ledger
from pipeline.cache.paths import Cache
from pipeline.cache.shard_record import ShardRecord

Part = Literal[
    "root",
    "head",
    "document",
    "commit",
    "table",
    "rejects",
    "ledger",
    "backup",
    "record",
    "record copy",
    "images",
    "sums",
    "copy",
    "pending",
]


@dataclass(frozen=True, slots=True)
class Damage:
    """One file that differs from what was recorded of it.

    Attributes:
        part: the kind of file.
        path: relative to the cache.
        problem: what is wrong, in a few words.
        commit: id of the commit that the file belongs to, "" if it belongs to none or to several.
        shard: number of the shard, -1 for files that do not belong to one.
        array: name of the array, "" for files that do not belong to one.
        rows: rows within the shard whose images are damaged; empty if the whole file is.
    """

    part: Part
    path: str
    problem: str
    commit: str = ""
    shard: int = -1
    array: str = ""
    rows: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}"


@dataclass(slots=True)
class Examination:
    """What an examination has found so far.

    Attributes:
        head: the current commit, None if there has never been one.
        commits, ledgers: those that can be read from their file or their backup, by commit id, newest first.
        records: the done-records that can be read from their file or its copy, by shard.
        strays: ids of readable commits that are neither the current one nor an ancestor of it.
        damages: every damaged file.
        files: every file that belongs to the cache, intact or damaged.
        unknown: every other file, left by a killed writer or by another program.
    """

    cache: Cache
    head: Commit | None = None
    commits: dict[str, Commit] = field(default_factory=dict)
    ledgers: dict[str, Ledger] = field(default_factory=dict)
    records: dict[int, ShardRecord] = field(default_factory=dict)
    strays: list[str] = field(default_factory=list)
    damages: list[Damage] = field(default_factory=list)
    files: set[Path] = field(default_factory=set)
    unknown: list[Path] = field(default_factory=list)

    def damaged(self, part: Part, path: Path, problem: str, **about: Any) -> None:
        """Record damage to a file; `about` holds the optional attributes of `Damage`."""
        self.damages.append(Damage(part, self.cache.name_of(path), problem, **about))

    def read(self, part: Part, path: Path, check: Callable[[bytes], str], **about: Any) -> bytes | None:
        """Read a file that must exist; if it is missing or `check` returns a problem, record that and return None."""
        self.files.add(path)
        try:
            content = read_regular(path)
        except (FileNotFoundError, NotADirectoryError):
            self.damaged(part, path, "missing", **about)
            return None
        except IsADirectoryError:
            self.damaged(part, path, "is a folder", **about)
            return None
        except OSError as error:
            self.damaged(part, path, f"cannot be read ({error.strerror})", **about)
            return None
        problem = check(content)
        if problem:
            self.damaged(part, path, problem, **about)
            return None
        return content
