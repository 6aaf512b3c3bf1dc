"""Declare arrays through zarr-python, and recognise equivalent metadata written by another version of it."""

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
    """Return the zarr.json of an image array and of its sums array, by path, as this version of zarr-python writes it.

    The arrays are created in memory, because a commit must be written to disk in a particular order.
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


def is_equivalent(content: bytes, wanted: bytes) -> bool:
    """Return whether two zarr.json files, of an array or of a group with consolidated metadata, mean the same.

    Versions of zarr-python serialise the same metadata differently: key order varies, and so do the defaults that are
    written out.
    """
    try:
        return _normal(json.loads(content)) == _normal(json.loads(wanted))
    except Exception:  # zarr-python raises many kinds of errors for invalid metadata
        return False


def _normal(document: Mapping[str, Any]) -> bytes:
    if document["node_type"] == "array":
        store = MemoryStore(store_dict={"zarr.json": default_buffer_prototype().buffer.from_bytes(canonical(document))})
        return canonical(zarr.open_array(store, mode="r").metadata.to_dict())
    inside = document.get("consolidated_metadata") or {}
    nodes = {path: _normal(node).decode() for path, node in inside.get("metadata", {}).items()}
    return canonical({**document, "consolidated_metadata": {**inside, "metadata": nodes} if nodes else None})
