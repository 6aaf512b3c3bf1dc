"""The shard that a task is writing: its files, under temporary names until they are published, and its buffers."""

import contextlib
import dataclasses
import errno
from collections.abc import Callable

import numpy as np

from pipeline import kernel
from pipeline.cache.done_records import encode_record, encode_record_copy
from pipeline.cache.drafts import Drafts
from pipeline.cache.shard_record import ShardRecord, StoredImages
from pipeline.cache.shards import ShardWriter, encode_sums, read_shard, sums_of
from pipeline.dicom.read import Slices, read_slices
from pipeline.dicom.records import Slice, Unit
from pipeline.engine.context import Context
from pipeline.engine.versions import library_versions, now
from pipeline.errors import SourceError
from pipeline.planning.jobs import ShardJob
from pipeline.source.reading import Content, reading

# Errors of a file system that has been unmounted, or whose server is gone.
LOST_SOURCE = {
    errno.ENODEV,
    errno.ENOTCONN,
    errno.ENXIO,
    errno.ESHUTDOWN,
    errno.EHOSTDOWN,
    errno.ESTALE,
    errno.ETIMEDOUT,
}


class OpenShard:
    """A shard being written: for each array a writer, the sums and a buffer for one image.

    Files that were not published are removed when the stack closes.

    Attributes:
        begin: called with a file's slot before the file is opened.
        used: number of rows that have an image.
        writers: one for each array of the job, in the same order.
    """

    def __init__(
        self, context: Context, job: ShardJob, begin: Callable[[int], object], stack: contextlib.ExitStack
    ) -> None:
        rows, channels = context.rows_per_shard, len(context.windows)
        self.context, self.job, self.begin = context, job, begin
        self.used = 0
        self._images = [np.empty((channels, spec.size_px, spec.size_px), np.uint8) for spec in job.arrays]
        self._sums = [np.zeros((rows, channels, 2), np.uint64) for _ in job.arrays]
        self._drafts = stack.enter_context(Drafts(context.cache.root))
        self._files = [context.cache.images_file(spec, job.shard) for spec in job.arrays]
        self.writers = [
            stack.enter_context(ShardWriter(self._drafts.begin(file), rows, context.codecs[spec.name]))
            for file, spec in zip(self._files, job.arrays, strict=True)
        ]
        paths = [unit.path for unit in job.units if unit.slot not in job.missing]
        self._read = stack.enter_context(reading(context.source, paths))

    def read(self, path: str) -> Content:
        """Read a file; its content is valid until the next call.

        Raises:
            SourceError: the whole source has become unreadable, so that its files must not count as damaged.
            FileNotFoundError: the file has vanished.
            OSError: the file cannot be read.
        """
        try:
            return self._read(path)
        except OSError as error:
            if error.errno in LOST_SOURCE:
                lost = f"{path}: the source is gone ({error.strerror}); restore it and run the command again"
                raise SourceError(lost) from error
            raise

    def slices_of(self, unit: Unit, data: memoryview) -> Slices:
        """Return the slices of a unit, decoded from the content of its file."""
        frames = (unit.first, unit.stop) if unit.stop else None
        return read_slices(data, self.context.reading, self.context.patient_key, frames)

    def store(self, position: int, found: Slice) -> None:
        """Render a slice into every array, at this row of the shard."""
        record, windows = found.record, self.context.windows
        sums = [array[position] for array in self._sums]
        kernel.render(found.stored, record.slope, record.intercept, found.padding, windows, self._images, sums)
        for writer, image in zip(self.writers, self._images, strict=True):
            writer.add(position, image)
        self.used += 1

    def keep(self, kept: frozenset[int]) -> None:
        """Copy these rows from the existing shard, which this one replaces."""
        rows = self.context.rows_per_shard
        for file, spec, writer, sums in zip(self._files, self.job.arrays, self.writers, self._sums, strict=True):
            shape = (len(self.context.windows), spec.size_px, spec.size_px)
            stored = read_shard(file.read_bytes(), shape, rows, self.context.codecs[spec.name]) if kept else ()
            for row, image, _ in stored:
                if row in kept and image is not None:
                    writer.add(row, image)
                    sums[row] = sums_of(image)
        self.used += len(kept)

    def publish(self, record: ShardRecord) -> int:
        """Make the shard of every array durable, then its done-record.

        Returns:
            total size of the image shards, bytes.
        """
        cache, shard = self.context.cache, self.job.shard
        sizes = [writer.finish() if self.used else 0 for writer in self.writers]
        stored = {
            spec.name: StoredImages(size, tuple(writer.digests), now(), library_versions())
            for writer, size, spec in zip(self.writers, sizes, self.job.arrays, strict=True)
        }
        record = dataclasses.replace(record, arrays={**record.arrays, **stored})
        sums = {
            cache.sums_file(spec, shard): encode_sums(sums)
            for spec, sums in zip(self.job.arrays, self._sums, strict=True)
        }
        done, copy = cache.record_file(shard), cache.record_copy_file(shard)
        records = {copy: encode_record_copy(record), done: encode_record(record)}
        for path, content in {**sums, **records}.items():
            self._drafts.begin(path).write_bytes(content)
        self._drafts.publish([*self._files, *sums, copy] if self.used else [copy], last=done)
        return sum(sizes)
