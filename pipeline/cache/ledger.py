"""The ledger of a commit: the size, time and content digest of every source file, and where its slices are stored."""

import io
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.cache.attributes import MAX_SHARDS

COLUMNS = ("sizes", "mtimes_ns", "digests", "shards", "slots", "parts")
UNKNOWN_TIME = -1
# The digest of a file that could not be read. Every build tries to read it again; if that fails again, the entry is
# kept unchanged.
UNREAD = "0" * 32


@dataclass(frozen=True, slots=True)
class Ledger:
    """One entry per source file, sorted by path, as columns of equal length n.

    Attributes:
        paths: relative to the source.
        sizes: int64, bytes.
        mtimes_ns: int64; UNKNOWN_TIME if the file was so new that a later change could have the same timestamp.
        digests: (n, 2) uint64, xxh3-128 of the content, high and low half.
        shards: int32, the shard that holds the file's slices, or the first of several.
        slots: int32, the file's place in that shard's plan.
        parts: int32, the number of consecutive shards that its frames span, usually 1.
    """

    paths: list[str]
    sizes: np.ndarray
    mtimes_ns: np.ndarray
    digests: np.ndarray
    shards: np.ndarray
    slots: np.ndarray
    parts: np.ndarray

    def __len__(self) -> int:
        return len(self.paths)

    def index(self) -> dict[str, int]:
        """Return path -> index of its entry."""
        return {path: line for line, path in enumerate(self.paths)}

    def unread(self) -> np.ndarray:
        """Return (n,) bool: files that exist but could not be read."""
        return (self.digests == 0).all(1)

    def live_slots(self) -> dict[int, dict[int, str]]:
        """Return shard -> slot -> current path, for every file."""
        live: dict[int, dict[int, str]] = {}
        columns = zip(self.paths, self.shards.tolist(), self.slots.tolist(), self.parts.tolist(), strict=True)
        for path, shard, slot, parts in columns:
            for part in range(parts):
                live.setdefault(shard + part, {})[slot] = path
        return live

    def take(self, lines: np.ndarray) -> "Ledger":
        """Return a ledger with the entries at these indices, in this order."""
        return Ledger(
            [self.paths[line] for line in lines.tolist()],
            self.sizes[lines],
            self.mtimes_ns[lines],
            self.digests[lines],
            self.shards[lines],
            self.slots[lines],
            self.parts[lines],
        )

    def encode(self) -> bytes:
        """Encode as a NumPy .npz; the paths are concatenated, so that they may contain any character."""
        names = [path.encode("utf-8", "surrogatepass") for path in self.paths]
        file = io.BytesIO()
        np.savez(
            file,
            names=np.frombuffer(b"".join(names), np.uint8),
            ends=np.cumsum([len(name) for name in names], dtype=np.int64),
            sizes=self.sizes,
            mtimes_ns=self.mtimes_ns,
            digests=self.digests,
            shards=self.shards,
            slots=self.slots,
            parts=self.parts,
        )
        return file.getvalue()

    @staticmethod
    def decode(content: bytes) -> "Ledger":
        """Decode the result of `encode`, or a ledger of format version 1, whose paths are separated by NUL.

        Raises:
            ValueError: the content is neither.
        """
        try:
            with np.load(io.BytesIO(content)) as columns:
                found = Ledger(_names(columns), *(columns[name] for name in COLUMNS))
        except (KeyError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"not a ledger ({error})") from error
        found.check()
        return found

    def check(self) -> None:
        """Check that the columns are consistent.

        Raises:
            ValueError: their lengths or dtypes are wrong, or a shard number is out of range.
        """
        columns = [getattr(self, name) for name in COLUMNS]
        right = all(len(column) == len(self) and column.dtype.kind in "iu" for column in columns)
        if not right or self.digests.shape != (len(self), 2) or self.digests.dtype != np.uint64:
            raise ValueError("its columns do not match each other or the format")
        if len(self) and (min(self.shards.min(), self.slots.min()) < 0 or not self.parts.min() >= 1):
            raise ValueError("it names impossible shards")
        if len(self) and max(self.shards.max(), self.parts.max()) > MAX_SHARDS:
            raise ValueError("it names impossible shards")


def _names(columns: Mapping[str, np.ndarray]) -> list[str]:
    names = columns["names"].tobytes()
    if "ends" not in columns:
        return names.decode("utf-8", "surrogateescape").split("\0") if names else []
    ends = columns["ends"].tolist()
    parts = [names[start:stop] for start, stop in zip([0, *ends], ends, strict=False)]
    return [part.decode("utf-8", "surrogatepass") for part in parts]


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a ledger that is being assembled."""

    path: str
    size: int
    mtime_ns: int
    digest: str
    shard: int
    slot: int
    parts: int


def ledger_of(entries: list[Entry]) -> Ledger:
    """Return the ledger of these entries, sorted by path."""
    entries = sorted(entries, key=lambda entry: entry.path)
    halves = [(int(entry.digest[:16], 16), int(entry.digest[16:], 16)) for entry in entries]
    return Ledger(
        [entry.path for entry in entries],
        np.array([entry.size for entry in entries], np.int64),
        np.array([entry.mtime_ns for entry in entries], np.int64),
        np.array(halves, np.uint64).reshape(-1, 2),
        np.array([entry.shard for entry in entries], np.int32),
        np.array([entry.slot for entry in entries], np.int32),
        np.array([entry.parts for entry in entries], np.int32),
    )


def merge(old: Ledger, new: Ledger) -> Ledger:
    """Merge two ledgers, sorted by path; an entry of `new` replaces the entry of `old` with the same path."""
    if not len(new):
        return old
    paths = set(new.paths)
    kept = old.take(np.array([line for line, path in enumerate(old.paths) if path not in paths], np.int64))
    joined = Ledger(
        kept.paths + new.paths,
        np.concatenate([kept.sizes, new.sizes]),
        np.concatenate([kept.mtimes_ns, new.mtimes_ns]),
        np.concatenate([kept.digests, new.digests]),
        np.concatenate([kept.shards, new.shards]),
        np.concatenate([kept.slots, new.slots]),
        np.concatenate([kept.parts, new.parts]),
    )
    order = sorted(range(len(joined)), key=joined.paths.__getitem__)
    return joined.take(np.array(order, np.int64))


def empty_ledger() -> Ledger:
    """Return the ledger of a cache without files."""
    return ledger_of([])


def digest_hex(halves: np.ndarray) -> str:
    """Return one (2,) uint64 entry of `Ledger.digests` as 32 hex digits."""
    return f"{int(halves[0]):016x}{int(halves[1]):016x}"
