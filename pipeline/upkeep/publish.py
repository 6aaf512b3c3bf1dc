"""Upload the current commit of a cache to an address: only the files that differ there, and the root last."""

import contextlib
import hashlib
import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping
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

OWNER = "cache.json"  # the identity of the cache that the address belongs to; written once, before anything else
LEASE = "publishing.json"  # names the publisher at work
BATCH = 64
READ_BYTES = 1 << 20

Digests = dict[str, tuple[int, str]]  # name -> size and xxh3-128 hex of its content


@dataclass(frozen=True, slots=True)
class Published:
    """The result of an upload: files of the commit, how many of them were sent, and the size of those in bytes."""

    files: int
    sent: int
    sent_bytes: int


def publish(cache: Cache, address: str, *, take_over: bool = False) -> Published:
    """Upload the current commit to an address that fsspec supports; readers there see the old commit or the new one.

    Nothing published is removed, so a reader can keep using the commit that it has opened. A file that is already
    there with the same digest is not sent again. Nothing private is sent: no path of a source file, no list of rejects.

    Args:
        take_over: whether to replace the lease of a publisher that started from another machine or folder.

    Raises:
        CacheError: there is no commit; the address holds another cache, or a commit that this one does not know;
            another publisher is at work; a file of the cache is missing or damaged; or the upload fails, in which
            case the command can be run again.
    """
    _require_commit(cache)
    with shared_lock(cache), publisher_lock(cache):
        head = _require_commit(cache)
        try:
            target = open_target(address)
            _claim(target, address, head)
            with _lease(target, address, cache, head, take_over=take_over) as require_lease:
                return _upload(target, address, cache, head, require_lease)
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


# --- the owner of an address ---------------------------------------------------------------------------------------


def _claim(target: Target, address: str, head: Commit) -> None:
    """Claim an empty address for this cache, or check that it already belongs to it.

    Raises:
        CacheError: the address belongs to another cache, or holds other files.
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
def _lease(
    target: Target, address: str, cache: Cache, head: Commit, *, take_over: bool
) -> Iterator[Callable[[], None]]:
    """Hold the lease of an address; yield a function that raises a CacheError once another publisher has taken it over.

    A publisher that was killed leaves its lease behind. A lease from the same folder is replaced at once, because this
    process holds that folder's publisher lock; a lease from elsewhere is replaced only with `take_over`.
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

    def require_lease() -> None:
        if target.read(LEASE) != lease:
            raise CacheError(f"{address}: another publisher has taken over; wait for it, then run the command again")

    try:
        yield require_lease
    finally:
        with contextlib.suppress(Exception):  # would hide the error that ended the upload
            if target.read(LEASE) == lease:
                target.remove(LEASE)


# --- the upload ----------------------------------------------------------------------------------------------------


def _upload(target: Target, address: str, cache: Cache, head: Commit, require_lease: Callable[[], None]) -> Published:
    before = _commit_there(target, address, head)
    known = _manifest(target, before) | _manifest(target, head.id)
    there = target.sizes()
    shards = _shards(cache, head)
    wanted = {name: _digest(cache.root / name) for name in sorted(shards)}
    to_send = [name for name, entry in wanted.items() if known.get(name) != entry or there.get(name) != entry[0]]
    for start in range(0, len(to_send), BATCH):
        batch = to_send[start : start + BATCH]
        for name in batch:
            _require_intact(cache, head, name, *shards[name])
        target.send(cache.root, batch)
        known |= {name: wanted[name] for name in batch}
        target.write(_manifest_name(head.id), _encode(head, known))
    contents = _contents(cache, head)
    for name, content in contents.items():
        target.write(name, content)
    target.write(_manifest_name(head.id), _encode(head, wanted))
    sizes = {name: size for name, (size, _) in wanted.items()}
    _check_sizes(target, address, sizes | {name: len(content) for name, content in contents.items()})
    require_lease()
    if _commit_there(target, address, head) != before:
        raise CacheError(f"{address}: another publisher has changed it in the meantime; run the command again")
    last = {ROOT_DOCUMENT: head.documents()[ROOT_DOCUMENT], "metadata.csv": commits.read_table(cache, head)}
    for name, content in last.items():
        target.write(name, content)
    written = contents | last
    sent_bytes = sum(sizes[name] for name in to_send) + sum(map(len, written.values()))
    return Published(len(wanted) + len(written), len(to_send) + len(written), sent_bytes)


def _commit_there(target: Target, address: str, head: Commit) -> str | None:
    """Return the id of the commit published at the address, None if there is none yet.

    Raises:
        CacheError: it is not in this cache's history.
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
    """Return the shard and chunk files of a commit's arrays, each with its shard number and array."""
    files = {}
    for shard in commits.read_ledger(cache, head.id).live_slots():
        if require_record(cache, shard).slices:
            for spec in head.terms.arrays:
                for file in (cache.images_file(spec, shard), cache.sums_file(spec, shard)):
                    files[cache.name_of(file)] = shard, spec
    return files


def _require_intact(cache: Cache, head: Commit, name: str, shard: int, spec: ArraySpec) -> None:
    """Raise a CacheError if a file is damaged, as it could replace an intact one."""
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
    """Return the size of a file in bytes and the xxh3-128 hex digest of its content."""
    digest, size = xxhash.xxh3_128(), 0
    with open_regular(path) as file:
        while part := file.read(READ_BYTES):
            digest.update(part)
            size += len(part)
    return size, digest.hexdigest()


def _contents(cache: Cache, head: Commit) -> dict[str, bytes]:
    """Return the other files that readers need, except the root; the file of the commit itself comes last."""
    documents = {path: content for path, content in head.documents().items() if path != ROOT_DOCUMENT}
    table = {cache.name_of(cache.table_file(head.attributes.table_digest)): commits.read_table(cache, head)}
    return documents | table | {cache.name_of(cache.commit_file(head.id)): head.content()}


def _check_sizes(target: Target, address: str, sizes: Mapping[str, int]) -> None:
    """Raise a CacheError unless all these files are at the address with these sizes."""
    there = target.sizes()
    for name, size in sizes.items():
        if there.get(name) != size:
            raise CacheError(f"{address}/{name}: did not arrive complete; run the command again")


# --- manifests of sent files ---------------------------------------------------------------------------------------


def _manifest_name(commit: str) -> str:
    return f"published/{commit}.json"


def _encode(head: Commit, files: Digests) -> bytes:
    return canonical({"cache": head.attributes.cache, "commit": head.id, "files": files})


def _manifest(target: Target, commit: str | None) -> Digests:
    """Return the files that were recorded as sent for a commit; empty if there is no readable manifest."""
    if commit is None or not COMMIT_ID.fullmatch(commit):
        return {}
    files = _parse(target.read(_manifest_name(commit)) or b"").get("files")
    entries = files.items() if isinstance(files, dict) else ()
    return {str(name): (entry[0], entry[1]) for name, entry in entries if isinstance(entry, list) and len(entry) == 2}


def _parse(content: bytes) -> dict[str, Any]:
    """Parse a JSON object; return an empty one if the content is anything else."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
