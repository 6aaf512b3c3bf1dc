"""Say what a source holds: the files, with what tells that each is unchanged."""

from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pipeline.errors import SourceError
from pipeline.source.names import listed_name


class Stamp(NamedTuple):
    """What tells that a file is unchanged: size in bytes, modification time in ns since 1970."""

    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a source.

    Attributes:
        paths: relative to the source, with "/"; sorted, or in archive order.
        sizes: (files,) int64, bytes.
        mtimes_ns: (files,) int64, ns since 1970.
        ordered: the order is that of an archive, and reading in it is much cheaper than in another.
    """

    paths: list[str]
    sizes: np.ndarray
    mtimes_ns: np.ndarray
    ordered: bool = False


def listing_of(src: str, paths: list[str], sizes: "array[int]", times: "array[int]") -> Listing:
    """Sort what was found in any order.

    Raises:
        SourceError: it is nothing.
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
    """Put the members of each archive in its place, in its order."""
    paths: list[str] = []
    sizes, times = [], []
    at = 0
    for index, path in enumerate(loose.paths):
        if path not in members:
            continue
        of_archive = members[path]
        paths += loose.paths[at:index]
        paths += [f"{path}/{name}" for name in of_archive.paths]
        sizes += [loose.sizes[at:index], of_archive.sizes]
        times += [loose.mtimes_ns[at:index], of_archive.mtimes_ns]
        at = index + 1
    paths += loose.paths[at:]
    joined = np.concatenate([*sizes, loose.sizes[at:]]), np.concatenate([*times, loose.mtimes_ns[at:]])
    return Listing(paths, *joined, ordered=bool(members))
