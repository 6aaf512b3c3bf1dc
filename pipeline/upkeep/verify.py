"""This file finds damage: it reads every file of a cache and compares it with what was recorded of it."""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.cache import commits, layout
from pipeline.cache.commits import Commit
from pipeline.cache.documents import ROOT_DOCUMENT, zarr_documents
from pipeline.cache.files import PARTIAL, PRIVATE, canonical, sha256
from pipeline.cache.ledger import Ledger, digest_hex
from pipeline.cache.lock import lock_file
from pipeline.errors import CacheError
from pipeline.planning.survey import live_rows
from pipeline.upkeep.examination import Examination
from pipeline.upkeep.verify_shards import examine_shards


def examine(root: Path, shard_done: Callable[[int], None] = lambda shards: None) -> Examination:
    """Read everything.

    Args:
        shard_done: called for each shard that was read, with the number of all.

    Raises:
        CacheError: the folder is no cache.
    """
    found = Examination(root)
    examine_commits(found)
    examine_records(found)
    examine_shards(found, list(found.records), shard_done)
    examine_rest(found)
    return found


# --- commits -------------------------------------------------------------------------------------------------------


def examine_commits(found: Examination) -> None:
    """Check root, commits, tables, ledgers, spares and every zarr.json."""
    root = found.root
    spares = {path.stem for path in (root / PRIVATE / "spares").glob("*.zip")}
    every = {}
    for commit_id in sorted(commits.commit_ids(root) | spares):
        commit = _read_commit(root, commit_id)
        if commit:
            every[commit_id] = commit
    found.head = find_head(root, every)
    if found.head is None:
        if not every and not (root / ROOT_DOCUMENT).exists() and (root / PRIVATE).is_dir():
            return  # never committed
        raise CacheError(f"{root}: neither its root nor a commit of it can be read; build it again with a new --out")
    landed = [found.head.id, *(before for before in found.head.private["before"] if before in every)]
    for commit_id in landed:
        found.commits[commit_id] = every[commit_id]
        _examine_commit(found, every[commit_id])
    _examine_documents(found, found.head)


def _read_commit(root: Path, commit_id: str) -> Commit | None:
    """A commit from its file, or else from its spare."""
    try:
        return commits.read_commit(root, commit_id)
    except CacheError:
        spare = commits.read_spare(root, commit_id)
        return commits.parse_commit(spare.commit, commit_id) if spare else None


def find_head(root: Path, every: Mapping[str, Commit]) -> Commit | None:
    """The commit that the root stands for, also where it is damaged: then the one it resembles most.

    Where it is missing: the commit that was copied last, or else the one that follows all others.
    """
    copied = commits.copied_file(root)
    marker = copied.read_bytes().decode("ascii", "replace") if copied.exists() else ""
    if not (root / ROOT_DOCUMENT).exists():
        followers = sorted(every, key=lambda commit: len(every.keys() & set(every[commit].private["before"])))
        return every.get(marker) or (every[followers[-1]] if followers and marker else None)
    content = (root / ROOT_DOCUMENT).read_bytes()
    return min(every.values(), key=lambda commit: _distance(content, _root_document(commit)), default=None)


def _distance(found: bytes, wanted: bytes) -> int:
    return abs(len(found) - len(wanted)) + sum(a != b for a, b in zip(found, wanted, strict=False))


def _root_document(commit: Commit) -> bytes:
    return zarr_documents(commit.attributes, commit.arrays)[ROOT_DOCUMENT]


def _examine_commit(found: Examination, commit: Commit) -> None:
    root, about = found.root, {"commit": commit.id}
    found.read("commit", commits.commit_file(root, commit.id), _same_as(commit.content()), **about)
    found.read("table", commits.table_file(root, commit), _has_digest(commit.attributes["metadata"]["digest"]), **about)
    found.read("rejects", commits.rejects_file(root, commit), _has_digest(commit.private["rejects_digest"]), **about)
    found.read("spare", commits.spare_file(root, commit.id), _is_sealed, **about)
    ledger = found.read("ledger", commits.ledger_file(root, commit.id), _is_sealed, **about)
    spare = commits.read_spare(root, commit.id) if ledger is None else None
    if ledger is not None:
        found.ledgers[commit.id] = commits.read_ledger(root, commit.id)
    elif spare:
        found.ledgers[commit.id] = Ledger.decode(spare.ledger)


def _examine_documents(found: Examination, head: Commit) -> None:
    checks: dict[str, Callable[[bytes], str]] = {}
    shards = _shards_given_out(found.root, head)
    for commit in found.commits.values():  # the current one first: arrays only ever grow
        most = shards * commit.attributes["rows_per_shard"]
        for path, content in zarr_documents(commit.attributes, commit.arrays).items():
            node = commit.arrays.get(path.removesuffix("/zarr.json"))
            checks.setdefault(path, _same_but_for_rows(node, most) if node else _same_as(content))
    for path, check in checks.items():
        found.read("root" if path == ROOT_DOCUMENT else "document", found.root / path, check)


def _shards_given_out(root: Path, head: Commit) -> int:
    try:
        pending = layout.read_pending(root)
    except CacheError:  # named as damage of its own
        pending = None
    return layout.next_shard(root, head, pending)


def _same_but_for_rows(node: Mapping[str, Any], most: int) -> Callable[[bytes], str]:
    """An array may have rows that no commit knows: those of a build that was killed just before its commit."""
    rows, *others = node["shape"]
    [step, *_] = node["chunk_grid"]["configuration"]["chunk_shape"]
    documents = {canonical({**node, "shape": [grown, *others]}) for grown in range(rows, max(most, rows) + 1, step)}
    return lambda content: "" if content in documents else "is not what the commit says"


def _same_as(wanted: bytes) -> Callable[[bytes], str]:
    return lambda content: "" if content == wanted else "is not what the commit says"


def _has_digest(digest: str) -> Callable[[bytes], str]:
    return lambda content: "" if sha256(content) == digest else "its digest does not match"


def _is_sealed(content: bytes) -> str:
    digest, _, rest = content.partition(b"\n")
    return "" if sha256(rest).encode() == digest else "its digest does not match"


# --- records -------------------------------------------------------------------------------------------------------


def examine_records(found: Examination) -> None:
    """Check every done-record, and that it says what the ledgers say."""
    root = found.root
    named = {shard for ledger in found.ledgers.values() for shard in ledger.live_slots()}
    for shard in sorted(named | set(layout.recorded_shards(root))):
        path = layout.record_file(root, shard)
        if found.read("record", path, _is_sealed, shard=shard) is not None:
            record = layout.read_record(root, shard)
            assert record
            found.records[shard] = record
        else:  # what it vouched for can be mended, and is no leftover
            found.files |= {path for folder in ("images", "sums") for path in root.glob(f"{folder}/*/c/{shard}/**/*")}
    for commit_id, ledger in found.ledgers.items():
        for shard, problem in _disagreements(found, found.commits[commit_id], ledger):
            found.damaged("record", layout.record_file(root, shard), problem, shard=shard, commit=commit_id)


def _disagreements(found: Examination, commit: Commit, ledger: Ledger) -> Iterator[tuple[int, str]]:
    line_of = {path: line for line, path in enumerate(ledger.paths)}
    names = [path.split("/")[1] for path in commit.arrays if path.startswith("images/")]
    for shard, slots in ledger.live_slots().items():
        record = found.records.get(shard)
        if record is None:
            continue
        digests = record["files"]["digest"]
        for slot, path in slots.items():
            if slot >= len(digests) or digests[slot] != digest_hex(ledger.digests[line_of[path]]):
                yield shard, f"says another content of {path} than commit {commit.id}"
        rows = live_rows(record, slots)
        for name in names:
            images = record["arrays"].get(name, {"digests": [None] * (max(rows, default=-1) + 1)})["digests"]
            if not all(images[row] for row in rows):
                yield shard, f"knows no image in {name} of some slices of commit {commit.id}"


# --- the rest ------------------------------------------------------------------------------------------------------


def examine_rest(found: Examination) -> None:
    """Check the copies and the pending plan, and list files that do not belong to the cache."""
    root, head = found.root, found.head
    if head:
        found.read("copy", root / "metadata.csv", _copies(head.attributes["metadata"]["digest"]))
        found.read("copy", root / "rejects.csv", _copies(head.private["rejects_digest"]))
        found.read("copy", commits.copied_file(root), _same_as(head.id.encode()))
    pending = layout.pending_file(root)
    if pending.exists():
        found.read("pending", pending, _is_sealed)
    found.files.add(lock_file(root))
    for folder, _, names in os.walk(root):
        found.unknown += [path for name in names if (path := Path(folder) / name) not in found.files]
    found.unknown.sort()


def _copies(digest: str) -> Callable[[bytes], str]:
    return lambda content: "" if sha256(content) == digest else "is no copy of the current commit's table"


def is_leftover(root: Path, path: Path) -> bool:
    """Whether a file that does not belong to the cache was left by a killed writer, and not put there by a user."""
    own = ("images", "sums", "tables", "commits", PRIVATE)
    return path.name.endswith(PARTIAL) or path.relative_to(root).parts[0] in own
