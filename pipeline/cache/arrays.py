"""Declare arrays through zarr-python, and recognise metadata that another version of it has written."""

import json
from collections.abc import Mapping
from typing import Any

import zarr
from zarr.buffer import default_buffer_prototype
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec
from zarr.storage import MemoryStore

from pipeline.cache.files import canonical
from pipeline.cache.shards import Codec
from pipeline.planning.stages import ArrayPath, ArraySpec


def new_array_metadata(
    spec: ArraySpec, channels: int, rows: int, rows_per_shard: int, codec: Codec
) -> dict[ArrayPath, Any]:
    """The zarr.json of an image array and of its sums array, by path, as this version of zarr-python has them.

    They are declared in memory: on disk a commit is written in an order of its own.
    """
    side, written = spec.size_px, dict[str, Any]()
    store = MemoryStore(store_dict=written)
    zarr.create_array(
        store,
        name=spec.images_path,
        shape=(rows, channels, side, side),
        shards=(rows_per_shard, channels, side, side),
        chunks=(1, channels, side, side),
        dtype="uint8",
        compressors=[_compressor(codec), Crc32cCodec()],
        fill_value=0,
    )
    zarr.create_array(
        store,
        name=spec.sums_path,
        shape=(rows, channels, 2),
        chunks=(rows_per_shard, channels, 2),
        dtype="uint64",
        compressors=[Crc32cCodec()],
        fill_value=0,
    )
    paths = (spec.images_path, spec.sums_path)
    return {path: json.loads(written[f"{path}/zarr.json"].to_bytes()) for path in paths}


def _compressor(codec: Codec) -> BloscCodec | ZstdCodec:
    if codec.name == "zstd":
        return ZstdCodec(level=codec.level)
    cname: Any = codec.name
    return BloscCodec(cname=cname, clevel=codec.level, shuffle="noshuffle", typesize=1)


def says_the_same(content: bytes, wanted: bytes) -> bool:
    """Whether a zarr.json, of a group with consolidated metadata or of an array, says what another one says.

    Every version of zarr-python writes the same metadata in its own way: keys in another order, defaults said or not.
    """
    try:
        return _normal(json.loads(content)) == _normal(json.loads(wanted))
    except Exception:  # zarr-python has many errors for what is no metadata
        return False


def _normal(document: Mapping[str, Any]) -> bytes:
    if document["node_type"] == "array":
        store = MemoryStore(store_dict={"zarr.json": default_buffer_prototype().buffer.from_bytes(canonical(document))})
        return canonical(zarr.open_array(store, mode="r").metadata.to_dict())
    inside = document.get("consolidated_metadata") or {}
    nodes = {path: _normal(node).decode() for path, node in inside.get("metadata", {}).items()}
    return canonical({**document, "consolidated_metadata": {**inside, "metadata": nodes} if nodes else None})
