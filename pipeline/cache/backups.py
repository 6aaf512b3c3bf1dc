"""Keep a second copy of everything that makes up a commit, from which `verify --repair` restores the first."""

import io
import zipfile
import zlib
from dataclasses import dataclass

from pipeline.cache.commits import Commit, parse_commit
from pipeline.cache.files import read_checked, sha256, with_checksum
from pipeline.cache.ledger import Ledger
from pipeline.cache.paths import Cache
from pipeline.errors import CacheError

MAX_BYTES = 1 << 32


@dataclass(frozen=True, slots=True)
class Backup:
    """The parts of a commit, each checked against the commit's digests."""

    commit: Commit
    table: bytes
    rejects: bytes
    ledger: Ledger


def encode_backup(backup: Backup) -> bytes:
    """Return a checksummed zip of the parts; it takes a few dozen bytes per slice."""
    parts = {
        "commit": backup.commit.content(),
        "private": backup.commit.private_content(),
        "table": backup.table,
        "rejects": backup.rejects,
        "ledger": backup.ledger.encode(),
    }
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return with_checksum(file.getvalue())


def read_backup(cache: Cache, commit: str) -> Backup | None:
    """Read the backup of a commit; return None if it is missing, damaged, or not a backup of that commit."""
    try:
        return _decode(read_checked(cache.backup_file(commit)), commit)
    except (OSError, CacheError, ValueError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError):
        return None


def _decode(content: bytes, commit: str) -> Backup:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if sum(member.file_size for member in archive.infolist()) > MAX_BYTES:
            raise ValueError("larger than a backup can be")
        parts = {name: archive.read(name) for name in archive.namelist()}
    found = parse_commit(parts["commit"], parts.get("private", b""), commit)
    digests = found.attributes.table_digest, found.private.rejects_digest
    if (sha256(parts["table"]), sha256(parts["rejects"])) != digests:
        raise ValueError("its tables do not match the commit")
    return Backup(found, parts["table"], parts["rejects"], Ledger.decode(parts["ledger"]))
