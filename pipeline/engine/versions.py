"""Say when something was made, and by which versions of what decides over pixels."""

import contextlib
import functools
import platform
import time
from importlib.metadata import PackageNotFoundError, version

LIBRARIES = ("ich-cache", "pydicom", "numpy", "numba", "numcodecs", "imagecodecs")


def now() -> str:
    """UTC, ISO 8601, seconds."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


@functools.cache
def library_versions() -> dict[str, str]:
    """Versions of what decides over pixels, as installed here."""
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions
