"""Find damage in the arrays: decode every shard and compare each image with its recorded digest."""

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from typing import Any

import xxhash

from pipeline.cache.documents import StoredArray, array_metadata, stored_array
from pipeline.cache.shard_record import StoredImages
from pipeline.cache.shards import Codec, check_sums, read_shard
from pipeline.errors import CacheError
from pipeline.planning.stages import ArraySpec
from pipeline.upkeep.examination import Examination


def document_of(found: Examination, spec: ArraySpec) -> StoredArray | None:
    """Return how an image array is stored, from a commit, or from its zarr.json if only an unfinished build has it."""
    for commit in found.commits.values():
        if spec.images_path in commit.arrays:
            return stored_array(commit.arrays[spec.images_path])
    try:
        document = array_metadata(found.cache, spec.images_path)
    except CacheError:
        return None
    return stored_array(document) if document else None


def examine_shards(found: Examination, shards: Collection[int], shard_done: Callable[[int], None]) -> None:
    """Check these shards in every array that their records list.

    The zarr.json files of arrays that only an unfinished build has are added to the files of the cache.

    Args:
        shard_done: called after each shard with the total number of shards.
    """
    names = {name for record in found.records.values() for name in record.arrays}
    arrays = {name: document_of(found, ArraySpec.of_name(name)) for name in sorted(names)}
    for name, document in arrays.items():
        spec = ArraySpec.of_name(name)
        if document and not any(spec.images_path in commit.arrays for commit in found.commits.values()):
            found.files |= {found.cache.document(path) for path in (spec.images_path, spec.sums_path)}
    for shard in shards:
        for name, images in found.records[shard].arrays.items():
            array = arrays[name]
            if array is None:
                path = found.cache.document(ArraySpec.of_name(name).images_path)
                found.damaged("document", path, "missing or damaged", array=name)
            elif any(images.digests):
                _examine_images(found, shard, name, images, array)
                _examine_sums(found, shard, name, array)
        shard_done(len(shards))


def _examine_images(found: Examination, shard: int, name: str, images: StoredImages, array: StoredArray) -> None:
    about: dict[str, Any] = {"shard": shard, "array": name}
    path = found.cache.images_file(ArraySpec.of_name(name), shard)
    content = found.read("images", path, lambda content: "", **about)
    if content is None:
        return
    if len(content) != images.bytes:
        found.damaged("images", path, f"{len(content):,} bytes instead of {images.bytes:,}", **about)
        return
    try:
        problems = row_problems(content, images.digests, array)
    except ValueError as error:
        found.damaged("images", path, str(error), **about)
        return
    by_problem = defaultdict(list)
    for row, problem in problems.items():
        by_problem[problem].append(row)
    for problem, rows in by_problem.items():
        some = ", ".join(str(row) for row in rows[:8]) + (", ..." if len(rows) > 8 else "")
        found.damaged("images", path, f"row{'s' * (len(rows) > 1)} {some}: {problem}", rows=tuple(rows), **about)


def shard_problem(content: bytes, images: StoredImages, array: StoredArray) -> str:
    """Return what is wrong with a shard file, "" if it is intact."""
    if len(content) != images.bytes:
        return f"{len(content):,} bytes instead of {images.bytes:,}"
    try:
        problems = row_problems(content, images.digests, array)
    except ValueError as error:
        return str(error)
    return next((f"row {row}: {problem}" for row, problem in problems.items()), "")


def row_problems(content: bytes, digests: Sequence[str | None], array: StoredArray) -> dict[int, str]:
    """Return what is wrong with each damaged image, by row within the shard.

    Args:
        content: of the shard file.
        digests: xxh3-128 hex digest of the image in each row, None for a row without one.
        array: how the images are stored.

    Raises:
        ValueError: the index of the shard cannot be read.
    """
    problems = {row: "is missing" for row, digest in enumerate(digests) if digest}
    for row, image, problem in read_shard(content, array.shape, len(digests), Codec.of(array)):
        if image is None:
            problems[row] = problem
        elif xxhash.xxh3_128_hexdigest(image.data) == digests[row]:
            problems.pop(row, None)
        else:
            problems[row] = "is not the image that was recorded"
    return problems


def _examine_sums(found: Examination, shard: int, name: str, array: StoredArray) -> None:
    path = found.cache.sums_file(ArraySpec.of_name(name), shard)
    rows, channels = array.rows_per_shard, array.shape[0]
    found.read("sums", path, lambda content: check_sums(content, rows, channels), shard=shard, array=name)
