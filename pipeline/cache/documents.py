"""Write and read the zarr.json of arrays, groups and the root: the metadata that every Zarr reader understands."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.cache.attributes import Terms
from pipeline.cache.files import canonical, read_file
from pipeline.cache.parsing import parse
from pipeline.cache.paths import ROOT_DOCUMENT, Cache
from pipeline.errors import CacheError
from pipeline.planning.stages import ArrayPath


def zarr_documents(attributes: Mapping[str, Any], arrays: Mapping[ArrayPath, Any]) -> dict[str, bytes]:
    """Return every zarr.json of a commit, by path; the root contains all of them as consolidated metadata.

    Those of the arrays are as zarr-python declared them. They are assembled here so that a commit gives the same bytes
    under every version of zarr-python; tests open the result with zarr-python and tensorstore.
    """
    nodes = {path.split("/")[0]: {"zarr_format": 3, "node_type": "group", "attributes": {}} for path in arrays}
    nodes |= {ArrayPath(path): node for path, node in arrays.items()}
    documents = {f"{path}/zarr.json": canonical(node) for path, node in nodes.items()}
    consolidated = {"kind": "inline", "must_understand": False, "metadata": nodes}
    root = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    return documents | {ROOT_DOCUMENT: canonical(root | {"consolidated_metadata": consolidated})}


@dataclass(frozen=True, slots=True)
class StoredArray:
    """What is needed to read the shards of an image array.

    Attributes:
        rows: number of rows of the array.
        shape: of one image, (C, S, S).
        rows_per_shard: images in one shard.
        compressor: name and settings of the inner chunks' codec, as in the zarr.json.
    """

    rows: int
    shape: tuple[int, int, int]
    rows_per_shard: int
    compressor: tuple[str, Mapping[str, Any]]


def stored_array(document: Any) -> StoredArray:
    """Parse the zarr.json of an image array.

    Raises:
        ValueError: it does not describe an image array of this format.
    """
    try:
        [sharding] = document["codecs"]
        inner = sharding["configuration"]["codecs"]
        rows, *shape = parse(tuple[int, int, int, int], document["shape"], "shape")
        rows_per_shard, *chunk = document["chunk_grid"]["configuration"]["chunk_shape"]
        name, settings = inner[1]["name"], inner[1].get("configuration", {})
        names = [codec["name"] for codec in inner]
        right = (
            sharding["name"] == "sharding_indexed"
            and names
            in (
                ["bytes", "blosc", "crc32c"],
                ["bytes", "zstd", "crc32c"],
            )
            and (
                type(settings.get("level", settings.get("clevel", 0))) is int
                and isinstance(settings.get("cname", "lz4"), str)
            )
        )
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"not an image array of this format ({error!r})") from error
    if not right or chunk != shape or type(rows_per_shard) is not int or rows_per_shard < 1 or min(shape) < 1:
        raise ValueError("not an image array of this format")
    return StoredArray(rows, (shape[0], shape[1], shape[2]), rows_per_shard, (name, settings))


def parse_arrays(content: Any, terms: Terms) -> Mapping[ArrayPath, Any]:
    """Check that a commit lists exactly the image and sums arrays of its sizes; return their zarr.json by path.

    Raises:
        ValueError: a path is missing or unexpected, or an array is not stored as the format prescribes.
    """
    paths = {path for spec in terms.arrays for path in (spec.images_path, spec.sums_path)}
    if not isinstance(content, dict) or content.keys() != paths:
        raise ValueError("the arrays do not match the sizes")
    for spec in terms.arrays:
        images, side = stored_array(content[spec.images_path]), spec.size_px
        if images.shape != (len(terms.windows), side, side) or images.rows_per_shard != terms.rows_per_shard:
            raise ValueError(f"{spec.images_path} does not have the shape that the commit gives")
        sums, channels = content[spec.sums_path], len(terms.windows)
        grid = {"name": "regular", "configuration": {"chunk_shape": [terms.rows_per_shard, channels, 2]}}
        if sums["shape"] != [images.rows, channels, 2] or sums["chunk_grid"] != grid or sums["data_type"] != "uint64":
            raise ValueError(f"{spec.sums_path} does not have the shape that the commit gives")
    return {ArrayPath(path): document for path, document in content.items()}


def array_metadata(cache: Cache, path: ArrayPath) -> Any | None:
    """Read the zarr.json of an image array; return None if there is none on disk.

    Raises:
        CacheError: it is damaged.
    """
    file = cache.document(path)
    try:
        document = json.loads(read_file(file))
        stored_array(document)
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise CacheError(f"{file}: damaged; run: pipeline verify --repair") from error
    return document
