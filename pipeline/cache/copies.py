"""Keep plain copies of the current commit's tables next to the root: metadata.csv and rejects.csv."""

from pipeline.cache import commits
from pipeline.cache.commits import Commit
from pipeline.cache.files import read_file, write_atomic
from pipeline.cache.head import record_head
from pipeline.cache.paths import Cache


def update_copies(cache: Cache, commit: Commit) -> bool:
    """Record the current commit next to the root and copy its tables; return whether that was necessary.

    A marker names the commit that was copied last, so that a build without changes does not read the tables.
    """
    marker = cache.copied_file
    if marker.exists() and read_file(marker) == commit.id.encode():
        return False
    if commit.attributes.cache:
        record_head(cache, commit)
    write_atomic(cache.metadata_copy, commits.read_table(cache, commit))
    write_atomic(cache.rejects_copy, commits.read_rejects(cache, commit))
    write_atomic(marker, commit.id.encode())
    return True
