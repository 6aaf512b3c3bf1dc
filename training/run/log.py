"""Keep a run's log.csv: lines of steps and epochs, cut back to a checkpoint on resuming."""

import contextlib
import csv
import os
from collections.abc import Iterator
from pathlib import Path

from training.run.digests import accept, cannot_write, prefix, root_of

# One line a step has `loss` (the training batches' mean, mixup and all) and the rate; one line an epoch has `split`
# validation and its weighted log loss besides. What a line does not have is empty.
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
    """The run's log.csv, appended to line by line and cut back to a checkpoint on resuming."""

    def __init__(self, path: Path, length_bytes: int = 0) -> None:
        """Open the log, cut to its first `length_bytes`; 0 starts anew, with a header."""
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
        """Append one line; columns not named stay empty."""
        with self._refused():
            self._writer.writerow(values)

    def flush(self) -> int:
        """Give every line to the system, without waiting for the disk; return the length in bytes."""
        with self._refused():
            self._file.flush()
            return self._file.tell()

    def sync(self, length: int) -> None:
        """Bring the first `length` bytes to the disk, while others may be written behind them."""
        with self._refused():
            os.fsync(self._file.fileno())
            if (root := root_of(self._path)) is not None:
                accept(root, self._path, prefix(self._path, length))

    def close(self) -> None:
        """Close the file; what a full disk does not take is lost, and written again by a run that is resumed."""
        with self._refused():
            self._file.close()

    @contextlib.contextmanager
    def _refused(self) -> Iterator[None]:
        """Have a disk that refuses be one line."""
        try:
            yield
        except OSError as error:
            raise cannot_write(self._path, error) from error
