"""How far a time stamp is believed: not while a later change could carry the same one."""

import pytest

from pipeline.cache.ledger import UNKNOWN_TIME
from pipeline.source import contents
from pipeline.source.contents import certain

SECOND = 1_000_000_000
WHOLE, FRACTION = 1_600_000_000 * SECOND, 1_600_000_000 * SECOND + 123_456_789


@pytest.mark.parametrize(
    ("mtime_ns", "age_ns", "believed"),
    [
        (WHOLE, 2 * SECOND + 1, True),  # a file system that keeps whole seconds may round up to the next two
        (WHOLE, 2 * SECOND, False),
        (WHOLE, 2 * SECOND - 1, False),
        (WHOLE, SECOND, False),
        (FRACTION, 20_000_001, True),
        (FRACTION, 20_000_000, False),
        (FRACTION, 0, False),
        (FRACTION, -SECOND, False),  # from the future
        (WHOLE, 3600 * SECOND, True),
    ],
)
def test_two_seconds_where_they_are_whole_and_a_tick_elsewhere(monkeypatch, mtime_ns, age_ns, believed):
    monkeypatch.setattr(contents.time, "time_ns", lambda: mtime_ns + age_ns)
    assert certain(mtime_ns) == (mtime_ns if believed else UNKNOWN_TIME)
