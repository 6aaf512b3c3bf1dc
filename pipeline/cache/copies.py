"""Keep the plain copies of the current commit's tables: metadata.csv and rejects.csv beside the root."""

from pathlib import Path

from pipeline.cache import commits
from pipeline.cache.commits import Commit
from pipeline.cache.files import read_file, write_atomic
from pipeline.cache.head import copied_file, record_head


def mend_copies(root: Path, commit: Commit) -> bool:
    """Record the current commit beside the root, and copy its tables; says whether that was to be done.

    A marker names the commit that was copied last, so that an unchanged build reads neither.
    """
    marker = copied_file(root)
    if marker.exists() and read_file(marker) == commit.id.encode():
        return False
    if commit.attributes.cache:
        record_head(root, commit)
    write_atomic(root / "metadata.csv", commits.read_table(root, commit))
    write_atomic(root / "rejects.csv", commits.read_rejects(root, commit))
    write_atomic(marker, commit.id.encode())
    return True
