"""Record when something was made, and with which versions of the libraries that affect pixel values."""

import contextlib
import functools
import platform
import time
from importlib.metadata import PackageNotFoundError, version

LIBRARIES = ("ich-cache", "pydicom", "numpy", "numba", "numcodecs", "imagecodecs")


def now() -> str:
    """Return the current time in UTC as ISO 8601, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


@functools.cache
def library_versions() -> dict[str, str]:
    """Return the versions of Python and of the installed libraries that affect pixel values, by name."""
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions
