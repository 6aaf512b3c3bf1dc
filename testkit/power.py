"""Simulate power cuts: unsynced contents are lost, and unsynced names may be."""

import contextlib
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch


class Disk:
    """A simulated disk that loses unsynced data.

    Each cut gives all relevant states: without any unsynced names, with all of them, and with those of one folder of
    VOUCHING, whose files refer to others. No state has unsynced content.
    """

    VOUCHING = ("", "commits/", ".pipeline/shards/")

    def __init__(self, top: Path) -> None:
        """Treat everything that is below `top` now as synced."""
        self.top = top
        self.cuts: dict[frozenset[tuple[str, bytes | None]], None] = {}
        self._contents: dict[int, bytes] = {}
        self._names: dict[int, dict[str, int]] = {}
        self._held: list[int] = []  # keeps files open, so that their inode numbers are not reused
        self._lock = threading.RLock()
        for path in (top, *top.rglob("*")):
            handle = os.open(path, os.O_RDONLY)
            self._sync(handle)
            os.close(handle)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Cut the power before each sync, and at the end; collect all distinct states in `cuts`."""
        fsync, fdatasync = os.fsync, os.fdatasync

        def watching(real):
            def sync(handle: int) -> None:
                with self._lock:
                    self._cut()
                    real(handle)
                    self._sync(handle)

            return sync

        with patch.object(os, "fsync", watching(fsync)), patch.object(os, "fdatasync", watching(fdatasync)):
            yield
        self._cut()
        for handle in self._held:
            os.close(handle)

    def _sync(self, handle: int) -> None:
        found = os.fstat(handle)
        if stat.S_ISDIR(found.st_mode):
            self._names[found.st_ino] = self._live_names(handle)
        else:
            self._contents[found.st_ino] = Path(f"/proc/self/fd/{handle}").read_bytes()
        self._held.append(os.dup(handle))

    @staticmethod
    def _live_names(folder: int | Path) -> dict[str, int]:
        with os.scandir(folder) as entries:
            return {entry.name: -entry.inode() if entry.is_dir() else entry.inode() for entry in entries}

    def _cut(self) -> None:
        inode = os.stat(self.top).st_ino
        kept = [frozenset(self._names_left(inode, "", ahead)) for ahead in (None, *self.VOUCHING)]
        every = frozenset(
            (str(path.relative_to(self.top)), None if path.is_dir() else self._contents.get(path.stat().st_ino, b""))
            for path in self.top.rglob("*")
        )
        self.cuts |= dict.fromkeys((*kept, every))

    def _names_left(self, folder: int, path: str, ahead: str | None) -> Iterator[tuple[str, bytes | None]]:
        """Yield the synced names with their content, and for the folder `ahead` also unsynced names."""
        names = self._names.get(folder, {})
        if path == ahead:
            names = self._live_names(self.top / path)
        for name, inode in names.items():
            yield path + name, self._contents.get(inode, b"") if inode > 0 else None
            if inode < 0:
                yield from self._names_left(-inode, f"{path}{name}/", ahead)


def restore(disk: frozenset[tuple[str, bytes | None]], top: Path) -> None:
    """Write the state after a cut to a folder."""
    top.mkdir(parents=True)
    for name, content in sorted(disk, key=lambda entry: entry[0]):
        if content is None:
            (top / name).mkdir(parents=True, exist_ok=True)
        else:
            (top / name).parent.mkdir(parents=True, exist_ok=True)
            (top / name).write_bytes(content)
