"""Read the files of a cache in a local folder, by names that the format allows."""

import os
import re
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from training.errors import CacheError
from training.system import open_file, read_whole

REPAIR = "run: pipeline verify --repair"


# The files and folders in docs/cache_format.md; "" is the cache itself.
NAME = re.compile(
    r"|zarr\.json|\.pipeline|commits|commits/[0-9a-f]{16}\.json|tables/[0-9a-f]{64}\.csv"
    r"|(images|sums)/[1-9][0-9]{0,4}-[0-9a-f]{8}(/zarr\.json|(/c(/[0-9]+)+))?"
)


@dataclass(frozen=True)
class Folder:
    """A cache in a local folder, read in place.

    Attributes:
        address: the folder, as it was given.
        remedy: what to do about a damaged file.
    """

    address: str
    remedy: str = REPAIR

    def origin(self, name: str) -> str:
        """Return how to name a file in an error about the cache itself, given its name in docs/cache_format.md."""
        return str(self.where(name))

    def where(self, name: str) -> Path:
        """Return the path of a file."""
        return Path(self.address, checked(name))

    def for_cache(self, cache: str) -> "Folder":
        """Return this folder itself; see `Mirror.for_cache`."""
        return self

    def exists(self, name: str) -> bool:
        """Return whether a file or folder exists; "" is the cache itself."""
        return self.where(name).exists()

    def names(self, name: str) -> list[str]:
        """Return the sorted names in a folder; an empty list if it does not exist."""
        folder = self.where(name)
        return sorted(os.listdir(folder)) if folder.is_dir() else []

    def read(self, name: str) -> bytes:
        """Return the current content of a file.

        Raises:
            CacheError: if it is missing or cannot be read.
        """
        return self.tail(name, None)

    def tail(self, name: str, length: int | None) -> bytes:
        """Return the last `length` bytes of a file, or all if it is shorter; raises as `read`."""
        try:
            return tail_of(self.where(name), length)
        except OSError as error:
            raise CacheError(f"{self.where(name)}: cannot be read ({error.strerror}); {REPAIR}") from error

    def fetch(self, name: str, tail_bytes: int) -> Path:
        """Return the path of a file; see `Mirror.fetch`."""
        return self.where(name)

    def fetching(self, names: Iterable[str], tail_bytes: int) -> AbstractContextManager[None]:
        """Do nothing, as the files are already local; see `Mirror.fetching`."""
        return nullcontext()


def checked(name: str) -> str:
    """Return `name` after checking that it is a file or folder of the cache format, so that it cannot point elsewhere.

    Raises:
        CacheError: if it is not in docs/cache_format.md.
    """
    if not NAME.fullmatch(name):
        raise CacheError(f"{name[:80]!r}: not the name of a file in a cache; {REPAIR}")
    return name


def tail_of(file: Path, length: int | None) -> bytes:
    """Return the last `length` bytes of a file, or all of it for None."""
    if length is None:
        return read_whole(file)
    with open_file(file) as opened:
        opened.seek(max(0, opened.seek(0, os.SEEK_END) - length))
        return opened.read()
