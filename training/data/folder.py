"""Read a cache's files in a folder of this machine, by the names that they may have."""

import os
import re
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from training.errors import CacheError
from training.system import open_file, read_whole

REPAIR = "run: pipeline verify --repair"


# The files and folders of docs/cache_format.md; "" is the cache itself.
NAME = re.compile(
    r"|zarr\.json|\.pipeline|commits|commits/[0-9a-f]{16}\.json|tables/[0-9a-f]{64}\.csv"
    r"|(images|sums)/[1-9][0-9]{0,4}-[0-9a-f]{8}(/zarr\.json|(/c(/[0-9]+)+))?"
)


@dataclass(frozen=True)
class Folder:
    """A cache in a folder of this machine, read where it is.

    Attributes:
        address: the folder, as it was given.
        way_out: what to do about a damaged file.
    """

    address: str
    way_out: str = REPAIR

    def origin(self, name: str) -> str:
        """Return what to call a file, by its name in docs/cache_format.md, where the cache itself is to blame."""
        return str(self.where(name))

    def where(self, name: str) -> Path:
        """Return the file on local disk."""
        return Path(self.address, checked(name))

    def of_cache(self, cache: str) -> "Folder":
        """Return the same; a folder needs no copies."""
        return self

    def exists(self, name: str) -> bool:
        """Whether there is such a file or folder; "" is the cache itself."""
        return self.where(name).exists()

    def names(self, name: str) -> list[str]:
        """Return the names in a folder, sorted; none where there is no such folder."""
        folder = self.where(name)
        return sorted(os.listdir(folder)) if folder.is_dir() else []

    def read(self, name: str) -> bytes:
        """Return a file's content as it is now.

        Raises:
            CacheError: it is missing or cannot be read.
        """
        return self.tail(name, None)

    def tail(self, name: str, length: int | None) -> bytes:
        """Return the last bytes of a file, all of a shorter one; raises as `read`."""
        try:
            return tail_of(self.where(name), length)
        except OSError as error:
            raise CacheError(f"{self.where(name)}: cannot be read ({error.strerror}); {REPAIR}") from error

    def fetch(self, name: str, tail_bytes: int) -> Path:
        """Return the file on local disk; see `Mirror.fetch`."""
        return self.where(name)

    def fetching(self, names: Iterable[str], tail_bytes: int) -> AbstractContextManager[None]:
        """See `Mirror.fetching`; here everything is in its place."""
        return nullcontext()


def checked(name: str) -> str:
    """Return the name of a file or folder of a cache.

    Raises:
        CacheError: it is none of docs/cache_format.md, and could lie anywhere.
    """
    if not NAME.fullmatch(name):
        raise CacheError(f"{name[:80]!r}: not the name of a file in a cache; {REPAIR}")
    return name


def tail_of(file: Path, length: int | None) -> bytes:
    """Return the last bytes of a file, all of it for None."""
    if length is None:
        return read_whole(file)
    with open_file(file) as opened:
        opened.seek(max(0, opened.seek(0, os.SEEK_END) - length))
        return opened.read()
