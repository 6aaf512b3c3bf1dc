"""Upload the current commit of a cache to an address, the root last, and only what differs there."""

import contextlib
import hashlib
import json
import os
import secrets
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from pipeline.cache import commits
from pipeline.cache.attributes import COMMIT_ID
from pipeline.cache.commits import Commit
from pipeline.cache.committing import require_record
from pipeline.cache.documents import stored_array
from pipeline.cache.files import canonical, open_regular
from pipeline.cache.head import current_commit
from pipeline.cache.lock import publisher_lock, shared_lock
from pipeline.cache.paths import ROOT_DOCUMENT, Cache
from pipeline.cache.shards import check_sums
from pipeline.errors import CacheError
from pipeline.planning.stages import ArraySpec
from pipeline.upkeep.targets import Target, open_target
from pipeline.upkeep.verify_shards import shard_problem

OWNER = "cache.json"  # whose address this is; written once, before anything else
LEASE = "publishing.json"  # who is publishing there
BATCH = 64
READ_BYTES = 1 << 20

Digests = dict[str, tuple[int, str]]  # name -> size and xxh3-128 hex of its content


@dataclass(frozen=True, slots=True)
class Published:
    """What an upload came to: files of the commit, and those that had to be sent with their bytes."""

    files: int
    sent: int
    sent_bytes: int


def publish(cache: Cache, address: str, *, take_over: bool = False) -> Published:
    """Upload the current commit to an address that fsspec knows; readers there see the old commit or this one.

    Nothing is removed there: a reader goes on with the commit that it has opened. A file that is there with the same
    digest is not sent again. Nothing private goes along: no path of a source file, no list of rejects.

    Args:
        take_over: believe that a publisher from elsewhere, which has begun and not ended there, is no longer at work.

    Raises:
        CacheError: there is no commit; the address holds another cache, or commits that this one does not know;
            another publisher is at work; a file is missing, or the other side fails, then the command can run again.
    """
    _require_commit(cache)
    with shared_lock(cache), publisher_lock(cache):
        head = _require_commit(cache)
        try:
            target = open_target(address)
            _claim(target, address, head)
            with _lease(target, address, cache, head, take_over=take_over) as still_ours:
                return _upload(target, address, cache, head, still_ours)
        except FileNotFoundError as error:
            raise CacheError(f"{error.filename or error}: missing; run: pipeline verify {cache}") from error
        except (OSError, ValueError, ImportError) as error:
            raise CacheError(
                f"{address}: {' '.join(str(error).split())}; fix this and run the command again"
            ) from error


def _require_commit(cache: Cache) -> Commit:
    head = current_commit(cache)
    if head is None:
        raise CacheError(f"{cache}: has no commit yet; run: pipeline build --src DICOMS --out {cache}")
    if not head.attributes.cache:
        raise CacheError(f"{cache}: has format version 1, which has no identity; run the same pipeline build again")
    return head


# --- whose address it is -------------------------------------------------------------------------------------------


def _claim(target: Target, address: str, head: Commit) -> None:
    """Make an empty address this cache's, or see that it is.

    Raises:
        CacheError: it is another's.
    """
    owner = canonical({"format": "ich-slices", "cache": head.attributes.cache})
    found = target.read(OWNER)
    if found is None:
        if target.sizes():
            raise CacheError(f"{address}: holds files that do not belong to a published cache; give an empty address")
        if target.create(OWNER, owner):
            return
        found = target.read(OWNER)
    if found != owner:
        raise CacheError(f"{address}: holds another cache; give another address")


@contextlib.contextmanager
def _lease(target: Target, address: str, cache: Cache, head: Commit, *, take_over: bool) -> Iterator[Any]:
    """Be the only publisher there; gives a check that it is still so.

    One that was killed has left its lease. From the same folder it is gone on with, for that folder's lock has died
    with it; from another one only on demand.
    """
    place = hashlib.sha256(f"{socket.gethostname()}\0{os.path.abspath(cache.root)}".encode()).hexdigest()[:16]
    since = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    lease = canonical({"commit": head.id, "from": place, "since": since, "token": secrets.token_hex(16)})
    if not target.create(LEASE, lease):
        other = _parse(target.read(LEASE) or b"")
        if other.get("from") != place and not take_over:
            raise CacheError(
                f"{address}: another publisher has been working there since {str(other.get('since'))[:40]}; wait for "
                "it, or if it was killed run with --take-over"
            )
        target.write(LEASE, lease)

    def still_ours() -> None:
        if target.read(LEASE) != lease:
            raise CacheError(f"{address}: another publisher has taken over; wait for it, then run the command again")

    try:
        yield still_ours
    finally:
        with contextlib.suppress(Exception):  # the error that ended the upload says more
            if target.read(LEASE) == lease:
                target.remove(LEASE)


# --- what is sent --------------------------------------------------------------------------------------------------


def _upload(target: Target, address: str, cache: Cache, head: Commit, still_ours: Any) -> Published:
    before = _commit_there(target, address, head)
    known = _manifest(target, before) | _manifest(target, head.id)
    there = target.sizes()
    shards = _shards(cache, head)
    wanted = {name: _digest(cache.root / name) for name in sorted(shards)}
    lacking = [name for name, of in wanted.items() if known.get(name) != of or there.get(name) != of[0]]
    for start in range(0, len(lacking), BATCH):
        batch = lacking[start : start + BATCH]
        for name in batch:
            _require_whole(cache, head, name, *shards[name])
        target.send(cache.root, batch)
        known |= {name: wanted[name] for name in batch}
        target.write(_manifest_name(head.id), _encode(head, known))
    contents = _contents(cache, head)
    for name, content in contents.items():
        target.write(name, content)
    target.write(_manifest_name(head.id), _encode(head, wanted))
    _check(target, address, {name: of[0] for name, of in wanted.items()} | {n: len(c) for n, c in contents.items()})
    still_ours()
    if _commit_there(target, address, head) != before:
        raise CacheError(f"{address}: another publisher has changed it in the meantime; run the command again")
    last = {ROOT_DOCUMENT: head.documents()[ROOT_DOCUMENT], "metadata.csv": commits.read_table(cache, head)}
    for name, content in last.items():
        target.write(name, content)
    written = contents | last
    sent_bytes = sum(wanted[name][0] for name in lacking) + sum(map(len, written.values()))
    return Published(len(wanted) + len(written), len(lacking) + len(written), sent_bytes)


def _commit_there(target: Target, address: str, head: Commit) -> str | None:
    """The commit that readers there see, None where there is none yet.

    Raises:
        CacheError: it is not of this cache's history.
    """
    content = target.read(ROOT_DOCUMENT)
    if content is None:
        return None
    attributes = _parse(content).get("attributes")
    found = attributes if isinstance(attributes, dict) else {}
    commit = str(found.get("commit"))[:40]
    if found.get("cache") != head.attributes.cache:
        raise CacheError(f"{address}: its zarr.json is not this cache's; give another address")
    if commit not in (head.id, *head.private.before):
        raise CacheError(
            f"{address}: holds commit {commit}, which this cache does not know, so the two have diverged; publish "
            "from the cache that made it, or give another address"
        )
    return commit


def _shards(cache: Cache, head: Commit) -> dict[str, tuple[int, ArraySpec]]:
    """The files of a commit's arrays, which are sent as they lie there -> their shard and array."""
    files = {}
    for shard in commits.read_ledger(cache, head.id).live_slots():
        if require_record(cache, shard).slices:
            for spec in head.terms.arrays:
                for file in (cache.images_file(spec, shard), cache.sums_file(spec, shard)):
                    files[cache.name_of(file)] = shard, spec
    return files


def _require_whole(cache: Cache, head: Commit, name: str, shard: int, spec: ArraySpec) -> None:
    """Raise a CacheError unless a file is as it was built, for it may take the place of a good one."""
    array = stored_array(head.arrays[spec.images_path])
    with open_regular(cache.root / name) as file:
        content = file.read()
    if name == cache.name_of(cache.sums_file(spec, shard)):
        problem = check_sums(content, array.rows_per_shard, array.shape[0])
    else:
        problem = shard_problem(content, require_record(cache, shard).arrays[spec.name], array)
    if problem:
        raise CacheError(f"{cache.root / name}: is damaged ({problem}); run: pipeline verify {cache}")


def _digest(path: Path) -> tuple[int, str]:
    digest, size = xxhash.xxh3_128(), 0
    with open_regular(path) as file:
        while part := file.read(READ_BYTES):
            digest.update(part)
            size += len(part)
    return size, digest.hexdigest()


def _contents(cache: Cache, head: Commit) -> dict[str, bytes]:
    """What else readers need, from the commit itself, the commit's own file last; all but the root."""
    documents = {path: content for path, content in head.documents().items() if path != ROOT_DOCUMENT}
    table = {cache.name_of(cache.table_file(head.attributes.table_digest)): commits.read_table(cache, head)}
    return documents | table | {cache.name_of(cache.commit_file(head.id)): head.content()}


def _check(target: Target, address: str, sizes: Mapping[str, int]) -> None:
    there = target.sizes()
    for name, size in sizes.items():
        if there.get(name) != size:
            raise CacheError(f"{address}/{name}: did not arrive complete; run the command again")


# --- what was sent before ------------------------------------------------------------------------------------------


def _manifest_name(commit: str) -> str:
    return f"published/{commit}.json"


def _encode(head: Commit, files: Digests) -> bytes:
    return canonical({"cache": head.attributes.cache, "commit": head.id, "files": files})


def _manifest(target: Target, commit: str | None) -> Digests:
    """What a publisher has noted as sent for a commit, nothing where it has noted nothing that can be read."""
    if commit is None or not COMMIT_ID.fullmatch(commit):
        return {}
    files = _parse(target.read(_manifest_name(commit)) or b"").get("files")
    lines = files.items() if isinstance(files, dict) else ()
    return {str(name): (of[0], of[1]) for name, of in lines if isinstance(of, list) and len(of) == 2}


def _parse(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
