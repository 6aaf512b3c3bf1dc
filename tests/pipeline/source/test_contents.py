"""A modification time is trusted only once no later change could have the same one."""

import pytest

from pipeline.cache.ledger import UNKNOWN_TIME
from pipeline.source import contents
from pipeline.source.contents import trusted_mtime

SECOND = 1_000_000_000
WHOLE, FRACTION = 1_600_000_000 * SECOND, 1_600_000_000 * SECOND + 123_456_789


@pytest.mark.parametrize(
    ("mtime_ns", "age_ns", "trusted"),
    [
        (WHOLE, 2 * SECOND + 1, True),  # a file system with whole seconds may round up to a multiple of two
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
def test_whole_seconds_resolve_two_seconds_and_other_times_a_tick(monkeypatch, mtime_ns, age_ns, trusted):
    monkeypatch.setattr(contents.time, "time_ns", lambda: mtime_ns + age_ns)
    assert trusted_mtime(mtime_ns) == (mtime_ns if trusted else UNKNOWN_TIME)
