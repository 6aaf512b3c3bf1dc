"""Targets for publishing a cache, a folder or an object store; each file is written completely or not at all."""

import contextlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from pipeline.cache.files import (
    is_partial_name,
    make_folder,
    partial_name,
    publish,
    read_regular,
    refuse_links_between,
    write_atomic,
)

IN_FLIGHT = 16


class Target(Protocol):
    """A place for a published cache; file names are relative to it, with forward slashes."""

    def sizes(self) -> dict[str, int]:
        """Return the size of every file, in bytes."""
        ...

    def read(self, name: str) -> bytes | None:
        """Return the content of a file, None if there is no such file."""
        ...

    def create(self, name: str, content: bytes) -> bool:
        """Write a new file; return False if it exists already, even if another writer has only just created it."""
        ...

    def write(self, name: str, content: bytes) -> None:
        """Write or replace a file; readers see either the old content or the new."""
        ...

    def send(self, root: Path, names: Sequence[str]) -> None:
        """Copy files of the cache folder `root`, each as `write` does."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file if it exists."""
        ...


class FolderTarget:
    """A folder on this machine."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def sizes(self) -> dict[str, int]:
        """See `Target.sizes`; also removes the temporary files of publishers that were killed."""
        files = [path for path in self._folder.rglob("*") if path.is_file()]
        left = {path for path in files if is_partial_name(path.name)}
        for path in left:
            path.unlink(missing_ok=True)
        complete = [path for path in files if path not in left]
        return {path.relative_to(self._folder).as_posix(): path.stat().st_size for path in complete}

    def read(self, name: str) -> bytes | None:
        """See `Target.read`."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return read_regular(self._folder / name)
        return None

    def create(self, name: str, content: bytes) -> bool:
        """See `Target.create`."""
        path = self._place(name)
        make_folder(path.parent)
        partial = partial_name(path)
        try:
            partial.write_bytes(content)
            os.link(partial, path)
        except FileExistsError:
            return False
        finally:
            partial.unlink(missing_ok=True)
        return True

    def write(self, name: str, content: bytes) -> None:
        """See `Target.write`."""
        write_atomic(self._place(name), content)

    def send(self, root: Path, names: Sequence[str]) -> None:
        """See `Target.send`."""
        for name in names:
            path = self._place(name)
            make_folder(path.parent)
            partial = partial_name(path)
            try:
                shutil.copyfile(root / name, partial)
                with partial.open("rb+") as file:
                    os.fsync(file.fileno())
                publish(partial, path)
            finally:
                partial.unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        """See `Target.remove`."""
        self._place(name).unlink(missing_ok=True)

    def _place(self, name: str) -> Path:
        refuse_links_between(self._folder, self._folder / name)
        return self._folder / name


class StoreTarget:
    """An object store, accessed through fsspec; a file exists as soon as the request that writes it has succeeded."""

    def __init__(self, system: Any, top: str) -> None:
        self._system, self._top = system, top.rstrip("/")

    def sizes(self) -> dict[str, int]:
        """See `Target.sizes`."""
        self._system.invalidate_cache()
        if not self._system.exists(self._top):
            return {}
        found = self._system.find(self._top, detail=True)
        return {name[len(self._top) :].lstrip("/"): info["size"] for name, info in found.items()}

    def read(self, name: str) -> bytes | None:
        """See `Target.read`."""
        self._system.invalidate_cache()
        with contextlib.suppress(FileNotFoundError):
            return bytes(self._system.cat_file(self._path(name)))
        return None

    def create(self, name: str, content: bytes) -> bool:
        """See `Target.create`. A store without conditional requests may let the last of two writers win."""
        with contextlib.suppress(FileExistsError, OSError):
            self._system.pipe_file(self._path(name), content, mode="create")
        return self.read(name) == content

    def write(self, name: str, content: bytes) -> None:
        """See `Target.write`."""
        self._system.pipe_file(self._path(name), content)

    def send(self, root: Path, names: Sequence[str]) -> None:
        """See `Target.send`; sends several files at a time."""
        to = [self._path(name) for name in names]
        self._system.put([str(root / name) for name in names], to, batch_size=IN_FLIGHT)

    def remove(self, name: str) -> None:
        """See `Target.remove`."""
        with contextlib.suppress(FileNotFoundError):
            self._system.rm_file(self._path(name))

    def _path(self, name: str) -> str:
        path = f"{self._top}/{name}"
        self._system.makedirs(path.rpartition("/")[0], exist_ok=True)
        return path


def open_target(address: str) -> Target:
    """Return the target at an address that fsspec supports.

    Raises:
        ValueError: fsspec does not support the address.
        ImportError: the package that fsspec needs for it is not installed.
    """
    from fsspec.core import url_to_fs

    system, top = url_to_fs(address)
    protocols = (system.protocol,) if isinstance(system.protocol, str) else system.protocol
    return FolderTarget(Path(top)) if "file" in protocols else StoreTarget(system, top)
