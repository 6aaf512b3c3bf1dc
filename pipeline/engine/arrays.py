"""Declare the arrays that a build writes, and choose their compressors."""

from collections.abc import Iterable
from typing import Any

from pipeline.cache.arrays import new_array_metadata
from pipeline.cache.documents import array_metadata, stored_array
from pipeline.cache.files import canonical, write_atomic
from pipeline.cache.shards import Codec
from pipeline.engine.work import Work
from pipeline.planning.stages import ArrayPath, ArraySpec


def codec_of(work: Work, spec: ArraySpec) -> Codec:
    """Return the compressor of an array: that of the commit or of the array on disk; for a new array, the catalog's."""
    head, layout = work.found.head, work.settings.layout
    committed = head.arrays.get(spec.images_path) if head else None
    existing = committed or array_metadata(work.cache, spec.images_path)
    if existing:
        return Codec.of(stored_array(existing))
    return Codec(layout.compression, layout.compression_level)


def declare_arrays(work: Work) -> None:
    """Write the zarr.json of new arrays before their first shard: a resumed build must use the same compressor.

    Readers do not see these arrays yet, as the root's consolidated metadata does not list them.
    """
    for spec in work.found.wanted.arrays:
        if not work.cache.document(spec.images_path).exists():
            for path, document in array_documents(work, [spec], rows=0).items():
                write_atomic(work.cache.document(path), canonical(document))


def array_documents(work: Work, wanted: Iterable[ArraySpec], *, rows: int) -> dict[ArrayPath, Any]:
    """Return the zarr.json of image arrays with this number of rows, and of their sums arrays, by path."""
    settings = work.settings
    documents: dict[ArrayPath, Any] = {}
    for spec in wanted:
        codecs = codec_of(work, spec)
        documents |= new_array_metadata(spec, len(settings.windows), rows, settings.layout.rows_per_shard, codecs)
    return documents
