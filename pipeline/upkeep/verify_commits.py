"""Find damage in the commits: root, commits, tables, ledgers, backups and every zarr.json."""

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
    """Check root, commits, tables, ledgers, backups and every zarr.json."""
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
    """A commit from its file, or else from its backup."""
    try:
        return commits.read_commit(cache, commit_id)
    except CacheError:
        backup = read_backup(cache, commit_id)
        return backup.commit if backup else None


def find_head(cache: Cache, every: Mapping[str, Commit], chosen: str) -> Commit | None:
    """The current commit, None where there was never one: the root's, or the recorded one where the root is damaged.

    A root that is whole, but of a commit before the recorded one, was put back by somebody; then too the record holds.

    Raises:
        CacheError: neither says, or the commit that is named cannot be read.
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
    begun = _root(cache) is not None or recorded or any(commit.private.before for commit in every.values())
    if not begun and cache.private.is_dir():
        return None  # never committed
    raise CacheError(_what_is_lost(cache, every, recorded or _named_by_root(cache)))


def _is_root(content: bytes, commit: Commit) -> bool:
    wanted = commit.documents()[ROOT_DOCUMENT]
    return content == wanted or (commit.id.encode() in content and is_equivalent(content, wanted))


def _what_is_lost(cache: Cache, every: Mapping[str, Commit], named: str | None) -> str:
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
    shards = _shards_given_out(found.cache, head)
    for commit in found.commits.values():  # the current one first: arrays only ever grow
        most = shards * commit.terms.rows_per_shard
        for path, content in commit.documents().items():
            node = next((node for array, node in commit.arrays.items() if path == f"{array}/zarr.json"), None)
            checks.setdefault(path, _same_but_for_rows(node, most) if node else _says(content))
    for path, check in checks.items():
        found.read("root" if path == ROOT_DOCUMENT else "document", found.cache.root / path, check)


def _shards_given_out(cache: Cache, head: Commit) -> int:
    try:
        pending = read_pending(cache)
    except CacheError:  # named as damage of its own
        pending = None
    return first_free_shard(cache, head, pending)


def _same_but_for_rows(node: Mapping[str, Any], most: int) -> Callable[[bytes], str]:
    """An array may have rows that no commit knows: those of a build that was killed just before its commit."""

    def check(content: bytes) -> str:
        rows, *others = node["shape"]
        try:
            grown = json.loads(content)["shape"][0]
            right = type(grown) is int and rows <= grown <= max(most, rows)
            identities: tuple[Any, ...] = (node["attributes"], {})  # one that a build has declared has none yet
            wanted = [canonical({**node, "shape": [grown, *others], "attributes": own}) for own in identities]
            right = right and (content in wanted or any(is_equivalent(content, one) for one in wanted))
        except (ValueError, KeyError, TypeError, IndexError, RecursionError):
            right = False
        return "" if right else "does not match the commit"

    return check


def same_as(wanted: bytes) -> Callable[[bytes], str]:
    """Check that a file has just this content."""
    return lambda content: "" if content == wanted else "does not match the commit"


def _says(wanted: bytes) -> Callable[[bytes], str]:
    """The same metadata; another version of zarr-python may have written it otherwise."""
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
