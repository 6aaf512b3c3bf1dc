"""A source whose files crash, hang or exhaust a worker, as damaged files do to native decoders."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from unittest.mock import patch

import numpy as np
import pandas as pd
import zarr

from pipeline.engine import shard
from pipeline.planning import survey
from pipeline.source.files import Buffer
from pipeline.source.folder import Folder
from pipeline.source.listing import Stamp
from testkit.small import Small, run, slice_bytes, write, write_slices

READ_SLICES = shard.read_slices


@dataclass(frozen=True)
class Faulty(Folder):
    """A folder in which decoding a file that is named after one of FAULTS calls it, and reading any takes `pause_s`."""

    pause_s: float = 0.0

    def read(self, path: str, buffer: Buffer, *how: Any, **past: Any) -> tuple[memoryview, Stamp]:
        time.sleep(self.pause_s)
        # In this process, until the next file is read.
        shard.read_slices = FAULTS.get(Path(path).stem.split("-")[0], READ_SLICES)
        return super().read(path, buffer, *how, **past)


def slow_build(small: Small, workers: int, pause_s: float) -> "subprocess.Popen[str]":
    """Start a build in a new session, in which reading a file takes `pause_s`."""
    script = small.folder / "command.py"
    script.write_text(  # workers import it when they start, so its imports are light, as in the real command
        "if __name__ == '__main__':\n"
        "    from pipeline.planning import survey\n    from pipeline.cli.main import main\n"
        "    from testkit.faulty import Faulty\n"
        f"    survey.open_source = lambda src: Faulty(src, {pause_s})\n    main()\n"
    )
    command = [sys.executable, str(script), "build", *small.options(), "--workers", str(workers)]
    paths = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=paths, start_new_session=True)


def _abort(*arguments: Any) -> NoReturn:
    os.abort()


def _quit(*arguments: Any) -> NoReturn:
    os._exit(0)


def _hang(*arguments: Any) -> None:
    assert 1 < signal.getitimer(signal.ITIMER_REAL)[0] <= 60, "the engine has not set a time limit"
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    time.sleep(600)


def _bomb(*arguments: Any) -> None:
    np.ones(8 << 30, np.uint8)


FAULTS: dict[str, Callable[..., Any]] = {"abort": _abort, "quit": _quit, "hang": _hang, "bomb": _bomb}


def check_neighbours(folder: Path, files: int, rows: int, kinds: tuple[str, ...] = tuple(FAULTS)) -> pd.DataFrame:
    """Build caches without and with files that kill their worker, and check that only those differ.

    Args:
        folder: for both caches.
        files: number of other files.
        rows: rows of a shard.
        kinds: of faults, one file each.

    Returns:
        path, code and message of the files that kill.
    """
    without, faulty = (Small(folder / name, rows=rows) for name in ("without", "faulty"))
    for small in (without, faulty):
        write_slices(small.src, range(files - 3))
        write(small.src / "cut.dcm", slice_bytes(files)[:-50])
        write(small.src / "notes.txt", b"not DICOM")
        write(small.src / "twin.dcm", slice_bytes(0))
    for number, kind in enumerate(kinds):
        write(faulty.src / f"{kind}-1.dcm", slice_bytes(files + 1 + number))
    without.build("--max-rejects", 1)
    with patch.object(survey, "open_source", Faulty):
        run("build", *faulty.options(), "--workers", 2, "--max-rejects", 1, code=1)
    counts, others = (zarr.open_group(small.out, mode="r").attrs["counts"] for small in (faulty, without))
    more = {"files": len(kinds), "failed": len(kinds)}
    assert counts == {name: number + more.get(name, 0) for name, number in others.items()}
    assert faulty.digest() == without.digest()
    rejects, expected = (pd.read_csv(small.out / "rejects.csv") for small in (faulty, without))
    killed = rejects["path"].isin([f"{kind}-1.dcm" for kind in kinds])
    pd.testing.assert_frame_equal(rejects[~killed].reset_index(drop=True), expected)
    assert set(rejects["code"][killed]) == {"killed_worker"}
    faulty.verify()
    return rejects[killed]
