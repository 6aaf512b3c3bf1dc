"""The findings of an examination of a cache: what is there, what is damaged, what does not belong."""

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
    """One file that is not as it was recorded.

    Attributes:
        part: what kind of file it is.
        path: relative to the cache.
        problem: what is wrong, in a few words.
        commit: the commit it belongs to, "" where it belongs to none or several.
        shard: of a record or of a shard of an array, else -1.
        array: name of the array, "" elsewhere.
        rows: rows within the shard whose image is lost, where some can be read.
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
        head: the current commit, None where it cannot be told.
        commits, ledgers: those that can be read, from their file or their backup; id -> commit, the current one first.
        records: shard -> done-record, those that can be read, from their file or its copy.
        strays: commits that can be read, and are not among those before the current one.
        damages: what is wrong.
        files: every file that belongs to the cache, right or damaged.
        unknown: files that do not: left by killed writers, or by somebody else.
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
        self.damages.append(Damage(part, self.cache.name_of(path), problem, **about))

    def read(self, part: Part, path: Path, check: Callable[[bytes], str], **about: Any) -> bytes | None:
        """Read a file that must be there; None, and noted, where it is missing or `check` says what is wrong."""
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
