"""Find damage in the commits: the root, commits, tables, ledgers, backups and every zarr.json."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from pipeline.cache import commits
from pipeline.cache.arrays import is_equivalent
from pipeline.cache.attributes import COMMIT_ID
from pipeline.cache.backups import read_backup
from pipeline.cache.commits import Commit
from pipeline.cache.files import canonical, checksum_matches, read_regular, sha256
from pipeline.cache.head import head_record, recorded_head
from pipeline.cache.ledger import Ledger
from pipeline.cache.paths import ROOT_DOCUMENT, Cache
from pipeline.cache.pending import first_free_shard, read_pending
from pipeline.errors import CacheError
from pipeline.upkeep.examination import Examination


def examine_commits(found: Examination, chosen: str = "") -> None:
    """Check the root, commits, tables, ledgers, backups and every zarr.json.

    Args:
        chosen: see `find_head`.

    Raises:
        CacheError: the current commit cannot be determined or read.
    """
    cache = found.cache
    backups = {path.stem for path in cache.backups_folder.glob("*.zip") if COMMIT_ID.fullmatch(path.stem)}
    every = {}
    for commit_id in sorted(cache.commit_ids() | backups):
        commit = _read_commit(cache, commit_id)
        if commit:
            every[commit_id] = commit
    found.head = find_head(cache, every, chosen)
    known = [found.head.id, *found.head.private.before] if found.head else []
    found.strays = [commit_id for commit_id in every if commit_id not in known]
    if found.head is None:
        return
    for commit_id in known:
        if commit_id in every:
            found.commits[commit_id] = every[commit_id]
            _examine_commit(found, every[commit_id])
    _examine_documents(found, found.head)
    if found.head.attributes.cache:
        found.read("head", cache.head_file, same_as(head_record(found.head)))


def _read_commit(cache: Cache, commit_id: str) -> Commit | None:
    """Return a commit from its file, or else from its backup; None if neither can be read."""
    try:
        return commits.read_commit(cache, commit_id)
    except CacheError:
        backup = read_backup(cache, commit_id)
        return backup.commit if backup else None


def find_head(cache: Cache, every: Mapping[str, Commit], chosen: str) -> Commit | None:
    """Return the current commit, None if there has never been one.

    That is the commit of the root or, if the root is damaged, that of the second record. The record also takes
    precedence over an intact root of an earlier commit, which someone must have put back.

    Args:
        every: the commits that can be read, by id.
        chosen: id of the commit to return if neither the root nor the record gives one.

    Raises:
        CacheError: neither gives one, or the commit that they name cannot be read.
    """
    recorded = recorded_head(cache) or ""
    content = _root(cache)
    named = next((commit for commit in every.values() if content and _is_root(content, commit)), None)
    if named and not (recorded in every and named.id in every[recorded].private.before):
        return named
    if recorded in every:
        return every[recorded]
    if chosen in every:
        return every[chosen]
    committed = _root(cache) is not None or recorded or any(commit.private.before for commit in every.values())
    if not committed and cache.private.is_dir():
        return None
    raise CacheError(_head_lost(cache, every, recorded or _named_by_root(cache)))


def _is_root(content: bytes, commit: Commit) -> bool:
    """Return whether this is the content of the root that belongs to a commit."""
    wanted = commit.documents()[ROOT_DOCUMENT]
    return content == wanted or (commit.id.encode() in content and is_equivalent(content, wanted))


def _head_lost(cache: Cache, every: Mapping[str, Commit], named: str | None) -> str:
    """Return the message that says which commit is lost and which ones remain."""
    lost = f"commit {named}, which is the current one, and its backup" if named else "which commit is the current one"
    newest = sorted(every.values(), key=lambda commit: -commit.attributes.sequence)
    if not newest:
        return f"{cache}: {lost} is lost, and no other commit can be read; build it again with a new --out"
    left = ", ".join(f"{commit.id} of {commit.attributes.created}" for commit in newest[:5])
    return (
        f"{cache}: {lost} is lost; intact are {left}; run: pipeline verify --repair --head COMMIT to continue from "
        "one, or build it again with a new --out"
    )


def _root(cache: Cache) -> bytes | None:
    try:
        return read_regular(cache.root_document)
    except OSError:
        return None


def _named_by_root(cache: Cache) -> str | None:
    try:
        commit = json.loads(_root(cache) or b"")["attributes"]["commit"]
        return commit if COMMIT_ID.fullmatch(commit) else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _examine_commit(found: Examination, commit: Commit) -> None:
    cache, about = found.cache, {"commit": commit.id}
    table, rejects = commit.attributes.table_digest, commit.private.rejects_digest
    found.read("commit", cache.commit_file(commit.id), same_as(commit.content()), **about)
    if commit.attributes.cache:
        found.read("commit", cache.private_file(commit.id), same_as(commit.private_content()), **about)
    found.read("table", cache.table_file(table), _has_digest(table), **about)
    found.read("rejects", cache.rejects_file(rejects), _has_digest(rejects), **about)
    backup = read_backup(cache, commit.id)
    found.read("backup", cache.backup_file(commit.id), lambda content: "" if backup else "is damaged", **about)
    ledger = found.read("ledger", cache.ledger_file(commit.id), _is_ledger, **about)
    if ledger is not None:
        found.ledgers[commit.id] = commits.read_ledger(cache, commit.id)
    elif backup:
        found.ledgers[commit.id] = backup.ledger


def _examine_documents(found: Examination, head: Commit) -> None:
    checks: dict[str, Callable[[bytes], str]] = {}
    shards = _assigned_shards(found.cache, head)
    for commit in found.commits.values():  # the current one comes first and has the most rows: arrays only ever grow
        max_rows = shards * commit.terms.rows_per_shard
        for path, content in commit.documents().items():
            node = next((node for array, node in commit.arrays.items() if path == f"{array}/zarr.json"), None)
            checks.setdefault(path, _same_except_rows(node, max_rows) if node else _is_equivalent_to(content))
    for path, check in checks.items():
        found.read("root" if path == ROOT_DOCUMENT else "document", found.cache.root / path, check)


def _assigned_shards(cache: Cache, head: Commit) -> int:
    """Return the number of shards assigned so far, including those of an unfinished build."""
    try:
        pending = read_pending(cache)
    except CacheError:  # `examine_rest` reports it
        pending = None
    return first_free_shard(cache, head, pending)


def _same_except_rows(node: Mapping[str, Any], max_rows: int) -> Callable[[bytes], str]:
    """Return a check that an array's zarr.json matches a commit, except that it may have more rows, up to `max_rows`.

    A build that was killed just before its commit leaves such rows behind.
    """

    def check(content: bytes) -> str:
        rows, *others = node["shape"]
        try:
            grown = json.loads(content)["shape"][0]
            matches = type(grown) is int and rows <= grown <= max(max_rows, rows)
            attributes: tuple[Any, ...] = (node["attributes"], {})  # an array without a commit has no attributes yet
            wanted = [canonical({**node, "shape": [grown, *others], "attributes": own}) for own in attributes]
            matches = matches and (content in wanted or any(is_equivalent(content, document) for document in wanted))
        except (ValueError, KeyError, TypeError, IndexError, RecursionError):
            matches = False
        return "" if matches else "does not match the commit"

    return check


def same_as(wanted: bytes) -> Callable[[bytes], str]:
    """Return a check that a file has exactly this content."""
    return lambda content: "" if content == wanted else "does not match the commit"


def _is_equivalent_to(wanted: bytes) -> Callable[[bytes], str]:
    """Return a check that a zarr.json has this metadata, in whatever way a version of zarr-python formats it."""
    same = same_as(wanted)
    return lambda content: same(content) and ("" if is_equivalent(content, wanted) else same(content))


def _has_digest(digest: str) -> Callable[[bytes], str]:
    return lambda content: "" if sha256(content) == digest else "its digest does not match"


def _is_ledger(content: bytes) -> str:
    if not checksum_matches(content):
        return "its digest does not match"
    try:
        Ledger.decode(content.partition(b"\n")[2])
    except ValueError as error:
        return str(error)
    return ""
