"""This file writes the zarr.json of arrays, groups and root: the metadata that any Zarr reader understands."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.cache.files import canonical
from pipeline.errors import CacheError
from pipeline.planning.stages import ArraySpec

ROOT_DOCUMENT = "zarr.json"


def new_array_metadata(spec: ArraySpec, channels: int, rows: int, rows_per_shard: int, codecs: list[Any]) -> Any:
    """The zarr.json of an image array and of its sums array, by path."""
    side = spec.size_px
    inner = {"chunk_shape": [1, channels, side, side], "codecs": codecs, "index_location": "end"}
    inner["index_codecs"] = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
    sharding = [{"name": "sharding_indexed", "configuration": inner}]
    plain = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
    shapes = [rows, channels, side, side], [rows, channels, 2]
    return {
        spec.images_path: _array(shapes[0], [rows_per_shard, *shapes[0][1:]], "uint8", sharding),
        spec.sums_path: _array(shapes[1], [rows_per_shard, *shapes[1][1:]], "uint64", plain),
    }


def _array(shape: list[int], chunks: list[int], dtype: str, codecs: list[Any]) -> dict[str, Any]:
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": shape,
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunks}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": codecs,
        "attributes": {},
    }


def zarr_documents(attributes: Mapping[str, Any], arrays: Mapping[str, Any]) -> dict[str, bytes]:
    """Every zarr.json of a commit by its path; the root carries all of them as consolidated metadata.

    Written out here and not by zarr-python so that the same commit gives the same bytes under every version of it,
    which is what `verify` compares; tests open the result with zarr-python and tensorstore.
    """
    nodes = {path.split("/")[0]: {"zarr_format": 3, "node_type": "group", "attributes": {}} for path in arrays}
    nodes |= dict(arrays)
    documents = {f"{path}/zarr.json": canonical(node) for path, node in nodes.items()}
    consolidated = {"kind": "inline", "must_understand": False, "metadata": nodes}
    root = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    return documents | {"zarr.json": canonical(root | {"consolidated_metadata": consolidated})}


def array_metadata(root: Path, path: str) -> Any | None:
    """The zarr.json that lies at an array's path, None where there is none.

    Raises:
        CacheError: damaged.
    """
    file = root / path / "zarr.json"
    try:
        document = json.loads(file.read_bytes())
        if document["node_type"] != "array":
            raise KeyError("node_type")
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise CacheError(f"{file}: damaged; run: pipeline verify --repair") from error
    return document
