"""Read the commits of a cache from its files, according to docs/cache_format.md."""

import hashlib
from pathlib import Path

import numpy as np
import zarr

from pipeline.cache.files import canonical
from testkit.small import Small


def head_of(small: Small) -> str:
    return str(zarr.open_group(small.out, mode="r").attrs["commit"])


def commit_files(small: Small) -> list[str]:
    return sorted(path.stem for path in (small.out / "commits").iterdir())


def identify(commit: dict) -> str:
    """Set the id of a commit according to its content, and return it."""
    unnamed = {key: value for key, value in commit["attributes"].items() if key != "commit"}
    digest = hashlib.sha256(canonical([unnamed, commit["arrays"], commit["private"]])).hexdigest()
    commit["attributes"]["commit"] = digest[:16]
    return digest[:16]


def error_lines(text: str) -> list[str]:
    """Return the lines of a command's output that are errors."""
    return [line for line in text.splitlines() if line.startswith("error:")]


def same_content(here: Path, there: Path) -> None:
    """Assert that a copy of a cache has the same commit, pixels and table."""
    ours, theirs = zarr.open_group(here, mode="r"), zarr.open_group(there, mode="r")
    assert dict(ours.attrs) == dict(theirs.attrs)
    for path in ours.attrs["sizes"].values():
        np.testing.assert_array_equal(ours[path][:], theirs[path][:])
    assert (here / "metadata.csv").read_bytes() == (there / "metadata.csv").read_bytes()
