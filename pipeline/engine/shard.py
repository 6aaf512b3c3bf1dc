"""Hold the shard that a task is making: its files under temporary names, and its images on their way into them."""

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

# What a file system that has been unmounted, or whose server is gone, answers.
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
    """One writer, one sums array and one scratch image an array; what was not published is gone at the end.

    Attributes:
        begin: called with a file's slot before the file is touched.
        used: rows that have an image.
        writers: of the arrays of the job, in its order.
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
        """Read a file, its memory good until the next call.

        Raises:
            SourceError: nothing of the source can be read any more; its files are not to be taken for broken ones.
            FileNotFoundError: it has vanished.
            OSError: it cannot be read.
        """
        try:
            return self._read(path)
        except OSError as error:
            if error.errno in LOST_SOURCE:
                lost = f"{path}: the source is gone ({error.strerror}); restore it and run the command again"
                raise SourceError(lost) from error
            raise

    def slices_of(self, unit: Unit, data: memoryview) -> Slices:
        """The slices of a unit, out of the content of its file."""
        frames = (unit.first, unit.stop) if unit.stop else None
        return read_slices(data, self.context.reading, self.context.patient_key, frames)

    def store(self, position: int, found: Slice) -> None:
        """Render one slice into every array at a row of the shard."""
        record, windows = found.record, self.context.windows
        sums = [array[position] for array in self._sums]
        kernel.render(found.stored, record.slope, record.intercept, found.padding, windows, self._images, sums)
        for writer, image in zip(self.writers, self._images, strict=True):
            writer.add(position, image)
        self.used += 1

    def keep(self, kept: frozenset[int]) -> None:
        """Copy rows of the shard that lies in this one's place."""
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
        """Make the shard of every array durable, then the record that says so. Returns the bytes written."""
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
