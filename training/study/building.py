"""Have the installed `pipeline` command build a temporary cache of a study, with a run's windows and size."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from training.errors import StudyError
from training.run.runs import Run
from training.study.scratch import no_room

DISTRIBUTION, COMMAND = "ich-cache", "pipeline"
INSTALL = "pip install 'ich-cache[pipeline,codecs]'"
DATASET = "study"
# Of all studies the same, so that the same files give the same order of lines; it protects nobody, and the cache that
# it is used for is removed.
PATIENT_KEY = "00" * 32


@dataclass(frozen=True)
class Order:
    """A build that is wanted.

    Attributes:
        cache: the folder of the cache that it makes.
        source: the folder of DICOM files.
        options: of `pipeline build`, but for the number of workers.
    """

    cache: Path
    source: Path
    options: tuple[str, ...]


@dataclass(frozen=True)
class Build:
    """A build that runs beside this process.

    Attributes:
        workers: processes of its own; 0 builds in the command's own, which starts soonest.
    """

    order: Order
    workers: int
    process: subprocess.Popen[str]


def find_pipeline() -> str:
    """Return the path of the `pipeline` command: this environment's, or else the first on PATH.

    Raises:
        StudyError: there is none; it says what to install.
    """
    here = Path(sys.executable).with_name(COMMAND)
    if _is_installed() and here.exists():
        return str(here)
    found = shutil.which(COMMAND)
    if found is None:
        raise StudyError(f"the command {COMMAND} is not installed, and it reads the DICOM files; run: {INSTALL}")
    return found


def _is_installed() -> bool:
    try:
        points = distribution(DISTRIBUTION).entry_points
    except PackageNotFoundError:
        return False
    return bool(points.select(group="console_scripts", name=COMMAND))


def write_catalog(path: Path, run: Run, *, identifiers: bool) -> None:
    """Write a catalog, JSON, which is YAML, that asks for the windows and size of a run, in one shard a hundred files.

    Args:
        identifiers: keep PatientID in the temporary cache; else a hash stands there.
    """
    windows = [{"name": name, "level_hu": level, "width_hu": width} for name, level, width in run.data.windows]
    classes = [
        {"name": name, "weight": weight} for name, weight in zip(run.data.classes, run.data.class_weights, strict=True)
    ]
    content = {
        "windows": windows,
        "sizes": [run.config.size_px],
        "datasets": {
            DATASET: {
                "description": "a study to be answered",
                "patient_ids": "keep" if identifiers else "hash",
                "classes": classes,
            }
        },
    }
    path.write_text(json.dumps(content), encoding="utf-8")


def make_order(run: Run, source: Path, work: Path, *, identifiers: bool = False) -> Order:
    """Write down, in a folder that will hold the cache too, what is to be built of a study for a run."""
    cache, catalog, key = work / "cache.zarr", work / "catalog.yaml", work / "patient.key"
    write_catalog(catalog, run, identifiers=identifiers)
    key.write_text(PATIENT_KEY)
    key.chmod(0o600)
    options = ["--src", source.absolute(), "--out", cache.absolute(), "--catalog", catalog.absolute()]
    options += ["--dataset", DATASET, "--max-rejects", "100%"]
    if not identifiers:
        options += ["--patient-key", key.absolute()]
    return Order(cache, source, tuple(map(str, options)))


def begin_build(order: Order, workers: int = 0) -> Build:
    """Start `pipeline build` beside this process, so that torch is imported meanwhile.

    Raises:
        StudyError: the command is not installed.
    """
    command = (find_pipeline(), "build", *order.options, "--workers", str(workers))
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        cwd=order.cache.parent, env=os.environ | {"PYTHONIOENCODING": "utf-8"}, encoding="utf-8",
    )  # fmt: skip
    return Build(order, workers, process)


def finish_build(build: Build, timeout_s: float | None = None) -> Path:
    """Wait for a build and return its cache.

    A file that kills the decoder kills a build in one process: that is tried again with a worker of its own, whose
    death leaves a line among the rejects.

    Raises:
        StudyError: none of its files is a CT slice, the build failed, or it took too long; in the pipeline's own words.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    try:
        said = build.process.communicate(timeout=timeout_s)[1]
    except subprocess.TimeoutExpired as error:
        end(build)
        raise too_late(build.order, timeout_s) from error
    code = build.process.returncode
    if code < 0 and build.workers == 0:
        left = None if deadline is None else max(0.001, deadline - time.monotonic())
        return finish_build(begin_build(build.order, workers=1), left)
    check_outcome(build.order, code, said)
    return build.order.cache


def too_late(order: Order, timeout_s: float | None) -> StudyError:
    """Return the error of a build that took too long."""
    return StudyError(f"{order.source}: not read within {timeout_s:.0f} s; give one study at a time")


def check_outcome(order: Order, code: int, said: str) -> None:
    """Raise a StudyError in the pipeline's own words unless a build's exit code is 0.

    Raises:
        NoRoomError: what it says is of the cache, which is temporary, so what it advises is not for the user.
    """
    if code:
        words = _last_words(said, code, order.source)
        if words.startswith(str(order.cache.absolute())):
            raise no_room(words.split("; ")[0].partition(": ")[2])
        raise StudyError(words)


def end(build: Build) -> None:
    """End a build that is no longer wanted."""
    if build.process.poll() is None:
        build.process.kill()
        build.process.communicate()


def _last_words(said: str, code: int, source: Path) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    last = lines[-1] if lines else ""
    if "ModuleNotFoundError" in last:
        return f"{last.removeprefix('ModuleNotFoundError: ')}: the pipeline is not fully installed; run: {INSTALL}"
    if last.startswith("error: "):
        return last.removeprefix("error: ")
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return (
        f"{source}: pipeline build ended with {how} ({last or 'without a message'}); try: pipeline build --src {source}"
    )
