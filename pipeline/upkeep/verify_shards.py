"""This file finds damage in the arrays: it decodes every shard and compares each image with its recorded digest."""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import xxhash

from pipeline.cache import layout
from pipeline.cache.documents import array_metadata
from pipeline.cache.shards import Codec, check_sums, read_shard
from pipeline.errors import CacheError
from pipeline.planning.stages import ArraySpec
from pipeline.upkeep.examination import Examination


def spec_of(name: str) -> ArraySpec:
    """`<size>-<fingerprint>` as an array's specification."""
    size, _, fingerprint = name.partition("-")
    return ArraySpec(int(size), fingerprint)


def document_of(found: Examination, name: str) -> Any:
    """An image array's zarr.json: as a commit says, or for one of an unfinished build as it lies there; else None."""
    path = spec_of(name).images_path
    for commit in found.commits.values():
        if path in commit.arrays:
            return commit.arrays[path]
    try:
        return array_metadata(found.root, path)
    except CacheError:
        return None


def examine_shards(found: Examination, shards: Collection[int], shard_done: Callable[[int], None]) -> None:
    """Check these shards in every array of their records, and note the arrays that only an unfinished build knows."""
    documents = {name: document_of(found, name) for record in found.records.values() for name in record["arrays"]}
    for name, document in documents.items():
        spec = spec_of(name)
        if document and not any(spec.images_path in commit.arrays for commit in found.commits.values()):
            found.files |= {found.root / path / "zarr.json" for path in (spec.images_path, spec.sums_path)}
    for shard in shards:
        for name, array in found.records[shard]["arrays"].items():
            document = documents[name]
            if document is None:
                path = found.root / spec_of(name).images_path / "zarr.json"
                found.damaged("document", path, "missing or damaged", array=name)
            elif any(array["digests"]):
                _examine_images(found, shard, name, array, document)
                _examine_sums(found, shard, name, document)
        shard_done(len(shards))


def _examine_images(found: Examination, shard: int, name: str, array: Mapping[str, Any], document: Any) -> None:
    about: dict[str, Any] = {"shard": shard, "array": name}
    path = layout.images_file(found.root, spec_of(name), shard)
    content = found.read("images", path, lambda content: "", **about)
    if content is None:
        return
    if len(content) != array["bytes"]:
        found.damaged("images", path, f"{len(content):,} bytes instead of {array['bytes']:,}", **about)
        return
    try:
        problems = row_problems(content, array["digests"], document)
    except ValueError as error:
        found.damaged("images", path, str(error), **about)
        return
    by_problem = defaultdict(list)
    for row, problem in problems.items():
        by_problem[problem].append(row)
    for problem, rows in by_problem.items():
        some = ", ".join(str(row) for row in rows[:8]) + (", ..." if len(rows) > 8 else "")
        found.damaged("images", path, f"row{'s' * (len(rows) > 1)} {some}: {problem}", rows=tuple(rows), **about)


def row_problems(content: bytes, digests: list[str | None], document: Any) -> dict[int, str]:
    """Row within the shard -> what is wrong with its image.

    Args:
        content: of the shard file.
        digests: row -> xxh3-128 of its image, None where there is none.
        document: the array's zarr.json.

    Raises:
        ValueError: no row can be found.
    """
    problems = {row: "is missing" for row, digest in enumerate(digests) if digest}
    shape = tuple(document["shape"][1:])
    for row, image, problem in read_shard(content, shape, len(digests), Codec.of(document)):
        if image is None:
            problems[row] = problem
        elif xxhash.xxh3_128_hexdigest(image.data) == digests[row]:
            del problems[row]
        else:
            problems[row] = "is another image than the recorded one"
    return problems


def _examine_sums(found: Examination, shard: int, name: str, document: Any) -> None:
    path: Path = layout.sums_file(found.root, spec_of(name), shard)
    rows = document["chunk_grid"]["configuration"]["chunk_shape"][0]
    channels = document["shape"][1]
    found.read("sums", path, lambda content: check_sums(content, rows, channels), shard=shard, array=name)
