"""The folder of an answer, written completely or not at all."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from training.errors import StudyError
from training.run.digests import cannot_write
from training.run.tables import write_json, write_table
from training.study.answer import LEVELS, Answer
from training.system import REFUSALS


def check_out(out: Path) -> None:
    """Raise a StudyError unless `out` does not exist or is an empty folder, so that answers are never mixed."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise StudyError(f"{out}: exists and is not an empty folder; choose another --out, or remove it")


@contextmanager
def complete_folder(out: Path) -> Iterator[Path]:
    """Yield a folder that is renamed to `out` at the end, or removed if something fails.

    Raises:
        StudyError: if `out` is not free.
        NotWrittenError: if the disk cannot be written.
    """
    check_out(out)
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        yield partial
        if out.exists():
            out.rmdir()
        partial.rename(out)
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        raise cannot_write(out, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_tables(folder: Path, answer: Answer, document: dict[str, Any]) -> None:
    """Write slices.csv, series.csv, studies.csv and rejects.csv, and answer.json with all of them."""
    for name in LEVELS:
        write_table(folder / f"{name}.csv", answer.table(name))
    write_table(folder / "rejects.csv", answer.left_out)
    write_json(folder / "answer.json", document)


def as_json(document: dict[str, Any]) -> str:
    """Return a document as JSON on one line, without NaN."""
    return json.dumps(document, ensure_ascii=False, allow_nan=False)
