"""This file uploads the current commit of a cache to an address, the root last, and only what the other side lacks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.cache import commits, layout
from pipeline.cache.commits import Commit
from pipeline.cache.head import current_commit
from pipeline.errors import CacheError

ROOT = "zarr.json"
COPIES = ("metadata.csv", "rejects.csv")
IN_FLIGHT = 16


@dataclass(frozen=True, slots=True)
class Published:
    """What an upload came to: files of the commit, and those that had to be sent with their bytes."""

    files: int
    sent: int
    sent_bytes: int


def publish(root: Path, address: str) -> Published:
    """Upload the current commit to an address that fsspec knows; readers there see the old commit or this one.

    Nothing is removed there: a reader goes on with the commit that it has opened. A shard or table that is there
    with the same name and size is not sent again, since it is never rewritten with other pixels.

    Raises:
        CacheError: there is no commit, a file of it is missing, or the other side fails; the command can run again.
    """
    head = current_commit(root)
    if head is None:
        raise CacheError(f"{root}: has no commit yet; run: pipeline build")
    files = sorted(_fixed_files(root, head))
    documents = sorted(set(head.documents()) - {ROOT})
    try:
        system, target = _open_system(address)
        there = _sizes(system, target)
        lacking = [file for file in files if there.get(file) != (root / file).stat().st_size]
        _send(system, target, root, [*lacking, *documents])
        _check(address, _sizes(system, target), root, [*files, *documents])
        _send(system, target, root, [ROOT])
        _send(system, target, root, COPIES)
    except FileNotFoundError as error:
        raise CacheError(f"{error.filename or error}: missing; run: pipeline verify {root}") from error
    except (OSError, ValueError, ImportError) as error:
        raise CacheError(f"{address}: {' '.join(str(error).split())}; mend it and run the command again") from error
    sent = [*lacking, *documents, ROOT, *COPIES]
    every = len({*files, *sent})
    return Published(every, len(sent), sum((root / file).stat().st_size for file in sent))


def _fixed_files(root: Path, head: Commit) -> Iterator[str]:
    """The files of a commit that are written once, relative to the root."""
    for shard in commits.read_ledger(root, head.id).live_slots():
        record = layout.read_record(root, shard)
        if record is None or record.slices:
            for spec in head.terms.arrays:
                yield f"{spec.images_path}/c/{shard}/0/0/0"
                yield f"{spec.sums_path}/c/{shard}/0/0"
    yield f"tables/{head.attributes.table_digest}.csv"
    yield f"commits/{head.id}.json"


def _open_system(address: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    return url_to_fs(address)


def _sizes(system: Any, target: str) -> dict[str, int]:
    """Path relative to the target -> size, of all that is there."""
    system.invalidate_cache()
    if not system.exists(target):
        return {}
    found = system.find(target, detail=True)
    return {name[len(target) :].lstrip("/"): info["size"] for name, info in found.items()}


def _send(system: Any, target: str, root: Path, files: Sequence[str]) -> None:
    for file in files:
        system.makedirs(f"{target}/{file}".rpartition("/")[0], exist_ok=True)
    sources = [str(root / file) for file in files]
    system.put(sources, [f"{target}/{file}" for file in files], batch_size=IN_FLIGHT)


def _check(address: str, there: dict[str, int], root: Path, files: Sequence[str]) -> None:
    for file in files:
        if there.get(file) != (root / file).stat().st_size:
            raise CacheError(f"{address}/{file}: has not arrived whole; run the command again")
