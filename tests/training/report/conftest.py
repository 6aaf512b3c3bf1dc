"""Reports in these tests have figures."""

from collections.abc import Iterator

import pytest

from testkit.bare_figures import drawn_figures


@pytest.fixture(scope="module", autouse=True)
def _drawn_figures() -> Iterator[None]:
    with drawn_figures():
        yield
