"""Write a run's log.csv: one line per step and epoch, truncated to the checkpoint on resuming."""

import contextlib
import csv
import os
from collections.abc import Iterator
from pathlib import Path

from training.run.digests import accept, cannot_write, prefix, root_of

# A line per step has `loss` (the mean over its training batches, including mixup) and the learning rate; a line per
# epoch has `split` validation and its weighted log loss. All other cells are empty.
LOG_COLUMNS = (
    "step",
    "epoch",
    "split",
    "loss",
    "weighted_log_loss",
    "learning_rate",
    "gradient_norm",
    "images_per_s",
    "seconds",
)


class Log:
    """The run's log.csv, which is appended to line by line and truncated to the checkpoint on resuming."""

    def __init__(self, path: Path, length_bytes: int = 0) -> None:
        """Open the log, truncated to its first `length_bytes`; 0 starts a new one, with a header."""
        self._path = path
        with self._refused():
            if (root := root_of(path)) is not None and path.exists():
                accept(root, path, prefix(path, length_bytes))
            self._file = open(path, "r+" if length_bytes else "w", newline="", encoding="utf-8")  # noqa: SIM115
            self._file.seek(length_bytes)
            self._file.truncate()
        self._writer = csv.DictWriter(self._file, LOG_COLUMNS, lineterminator="\n")
        if not length_bytes:
            self._writer.writeheader()

    def write(self, **values: float | int | str) -> None:
        """Append one line; columns that are not given are left empty."""
        with self._refused():
            self._writer.writerow(values)

    def flush(self) -> int:
        """Pass all lines to the operating system, without waiting for the disk, and return the length in bytes."""
        with self._refused():
            self._file.flush()
            return self._file.tell()

    def sync(self, length: int) -> None:
        """Flush the first `length` bytes to disk, while more may be appended."""
        with self._refused():
            os.fsync(self._file.fileno())
            if (root := root_of(self._path)) is not None:
                accept(root, self._path, prefix(self._path, length))

    def close(self) -> None:
        """Close the file; lines that a full disk rejects are lost, and are written again when the run is resumed."""
        with self._refused():
            self._file.close()

    @contextlib.contextmanager
    def _refused(self) -> Iterator[None]:
        """Turn write errors into a one-line error."""
        try:
            yield
        except OSError as error:
            raise cannot_write(self._path, error) from error
