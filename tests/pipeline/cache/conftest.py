"""A small source without a cache, for the tests of failures."""

import pytest

from testkit.small import Small, write_slices


@pytest.fixture
def small(tmp_path) -> Small:
    found = Small(tmp_path)
    write_slices(found.src, range(20))
    return found
