"""Runs in these tests write reports without figures, which are tested in training/report/."""

from collections.abc import Iterator

import pytest

from testkit.bare_figures import bare_figures


@pytest.fixture(scope="session", autouse=True)
def _bare_figures() -> Iterator[None]:
    with bare_figures():
        yield
