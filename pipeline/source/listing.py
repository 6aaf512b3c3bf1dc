"""The files of a source, with the size and time that show whether each has changed."""

from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pipeline.errors import SourceError
from pipeline.source.names import listed_name


class Stamp(NamedTuple):
    """Size in bytes and modification time in ns since 1970; a file with the same stamp counts as unchanged."""

    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a source.

    Attributes:
        paths: relative to the source, with "/"; sorted, or in archive order.
        sizes: (files,) int64, bytes.
        mtimes_ns: (files,) int64, ns since 1970.
        ordered: whether the order is that of archives, in which reading is much cheaper than in any other.
    """

    paths: list[str]
    sizes: np.ndarray
    mtimes_ns: np.ndarray
    ordered: bool = False


def listing_of(src: str, paths: list[str], sizes: "array[int]", times: "array[int]") -> Listing:
    """Return the listing of files found in any order, sorted by path.

    Args:
        src: the source, for messages.

    Raises:
        SourceError: there are no files.
    """
    if not paths:
        raise SourceError(f"{src}: no files in it; give a folder of DICOM files, an archive or one file")
    order = sorted(range(len(paths)), key=paths.__getitem__)
    return Listing(
        [listed_name(paths[index]) for index in order],
        np.array(sizes, np.int64)[order],
        np.array(times, np.int64)[order],
    )


def with_members(loose: Listing, members: Mapping[str, Listing]) -> Listing:
    """Replace each archive in a listing by its members, in the archive's order.

    Args:
        members: path of an archive -> the listing of its members.
    """
    paths: list[str] = []
    sizes, times = [], []
    at = 0
    for index, path in enumerate(loose.paths):
        if path not in members:
            continue
        inside = members[path]
        paths += loose.paths[at:index]
        paths += [f"{path}/{name}" for name in inside.paths]
        sizes += [loose.sizes[at:index], inside.sizes]
        times += [loose.mtimes_ns[at:index], inside.mtimes_ns]
        at = index + 1
    paths += loose.paths[at:]
    joined = np.concatenate([*sizes, loose.sizes[at:]]), np.concatenate([*times, loose.mtimes_ns[at:]])
    return Listing(paths, *joined, ordered=bool(members))
