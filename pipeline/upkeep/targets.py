"""Write to where a cache is published, a folder or an object store: each file whole or not at all."""

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
    """A place for a published cache; names are relative to it, with slashes."""

    def sizes(self) -> dict[str, int]:
        """Every file that is there -> its size in bytes."""
        ...

    def read(self, name: str) -> bytes | None:
        """The content of a file, None where there is none."""
        ...

    def create(self, name: str, content: bytes) -> bool:
        """Write a file that must not be there yet; False where it is, by another writer at the same time too."""
        ...

    def write(self, name: str, content: bytes) -> None:
        """Write or replace a file; a reader sees the old content or the new one."""
        ...

    def send(self, root: Path, names: Sequence[str]) -> None:
        """Copy files of a cache, each as `write` does."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        ...


class FolderTarget:
    """A folder of this machine."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def sizes(self) -> dict[str, int]:
        """As `Target.sizes`; what a killed publisher has left under a temporary name is removed."""
        files = [path for path in self._folder.rglob("*") if path.is_file()]
        left = {path for path in files if is_partial_name(path.name)}
        for path in left:
            path.unlink(missing_ok=True)
        whole = [path for path in files if path not in left]
        return {path.relative_to(self._folder).as_posix(): path.stat().st_size for path in whole}

    def read(self, name: str) -> bytes | None:
        """As `Target.read`."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return read_regular(self._folder / name)
        return None

    def create(self, name: str, content: bytes) -> bool:
        """As `Target.create`."""
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
        """As `Target.write`."""
        write_atomic(self._place(name), content)

    def send(self, root: Path, names: Sequence[str]) -> None:
        """As `Target.send`."""
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
        """As `Target.remove`."""
        self._place(name).unlink(missing_ok=True)

    def _place(self, name: str) -> Path:
        refuse_links_between(self._folder, self._folder / name)
        return self._folder / name


class StoreTarget:
    """An object store behind fsspec, where a file is there when the request that wrote it has been answered."""

    def __init__(self, system: Any, top: str) -> None:
        self._system, self._top = system, top.rstrip("/")

    def sizes(self) -> dict[str, int]:
        """As `Target.sizes`."""
        self._system.invalidate_cache()
        if not self._system.exists(self._top):
            return {}
        found = self._system.find(self._top, detail=True)
        return {name[len(self._top) :].lstrip("/"): info["size"] for name, info in found.items()}

    def read(self, name: str) -> bytes | None:
        """As `Target.read`."""
        self._system.invalidate_cache()
        with contextlib.suppress(FileNotFoundError):
            return bytes(self._system.cat_file(self._path(name)))
        return None

    def create(self, name: str, content: bytes) -> bool:
        """As `Target.create`, where the store knows conditional requests; others may let the last of two win."""
        with contextlib.suppress(FileExistsError, OSError):
            self._system.pipe_file(self._path(name), content, mode="create")
        return self.read(name) == content

    def write(self, name: str, content: bytes) -> None:
        """As `Target.write`."""
        self._system.pipe_file(self._path(name), content)

    def send(self, root: Path, names: Sequence[str]) -> None:
        """As `Target.send`, several at a time."""
        to = [self._path(name) for name in names]
        self._system.put([str(root / name) for name in names], to, batch_size=IN_FLIGHT)

    def remove(self, name: str) -> None:
        """As `Target.remove`."""
        with contextlib.suppress(FileNotFoundError):
            self._system.rm_file(self._path(name))

    def _path(self, name: str) -> str:
        path = f"{self._top}/{name}"
        self._system.makedirs(path.rpartition("/")[0], exist_ok=True)
        return path


def open_target(address: str) -> Target:
    """The place of an address that fsspec knows.

    Raises:
        ValueError, ImportError: fsspec does not know it, or a package is missing.
    """
    from fsspec.core import url_to_fs

    system, top = url_to_fs(address)
    protocols = (system.protocol,) if isinstance(system.protocol, str) else system.protocol
    return FolderTarget(Path(top)) if "file" in protocols else StoreTarget(system, top)
