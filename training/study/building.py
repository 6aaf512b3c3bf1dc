"""Builds of a temporary cache of a study by the installed `pipeline` command, with a run's windows and size."""

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
# The same for all studies, so that equal files give lines in equal order. It protects nobody; the cache that uses it is
# removed.
PATIENT_KEY = "00" * 32


@dataclass(frozen=True)
class Order:
    """A build to run.

    Attributes:
        cache: path of the cache to build.
        source: folder of DICOM files.
        options: options of `pipeline build`, without the number of workers.
    """

    cache: Path
    source: Path
    options: tuple[str, ...]


@dataclass(frozen=True)
class Build:
    """A build that runs in another process.

    Attributes:
        order: the build.
        workers: number of its worker processes; 0 builds in the command's own process, which starts fastest.
        process: the process of the command.
    """

    order: Order
    workers: int
    process: subprocess.Popen[str]


def find_pipeline() -> str:
    """Return the path of the `pipeline` command of this environment, or else of the first on PATH.

    Raises:
        StudyError: if there is none; the message says what to install.
    """
    here = Path(sys.executable).with_name(COMMAND)
    if _is_installed() and here.exists():
        return str(here)
    found = shutil.which(COMMAND)
    if found is None:
        raise StudyError(f"the command {COMMAND}, which reads the DICOM files, is not installed; run: {INSTALL}")
    return found


def _is_installed() -> bool:
    try:
        points = distribution(DISTRIBUTION).entry_points
    except PackageNotFoundError:
        return False
    return bool(points.select(group="console_scripts", name=COMMAND))


def write_catalog(path: Path, run: Run, *, identifiers: bool) -> None:
    """Write a catalog with the windows, classes and size of a run, as JSON, which is also YAML.

    Args:
        path: the file to write.
        run: the run.
        identifiers: whether to keep PatientID in the temporary cache instead of a hash.
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
                "description": "a study to predict",
                "patient_ids": "keep" if identifiers else "hash",
                "classes": classes,
            }
        },
    }
    path.write_text(json.dumps(content), encoding="utf-8")


def make_order(run: Run, source: Path, work: Path, *, identifiers: bool = False) -> Order:
    """Return the build of a study for a run; write its catalog and key to `work`, which will also hold the cache."""
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
    """Start `pipeline build` in another process, so that torch can be imported meanwhile.

    Raises:
        StudyError: if the command is not installed.
    """
    command = (find_pipeline(), "build", *order.options, "--workers", str(workers))
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        cwd=order.cache.parent, env=os.environ | {"PYTHONIOENCODING": "utf-8"}, encoding="utf-8",
    )  # fmt: skip
    return Build(order, workers, process)


def finish_build(build: Build, timeout_s: float | None = None) -> Path:
    """Wait for a build and return the path of its cache.

    A file that crashes the decoder also ends a build without workers. It is then repeated with a worker process, whose
    crash is recorded as a reject.

    Raises:
        StudyError: if no file has a CT slice, the build fails, or it takes too long; with the pipeline's message.
        NoRoomError: if the cache cannot be written.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    try:
        output = build.process.communicate(timeout=timeout_s)[1]
    except subprocess.TimeoutExpired as error:
        end(build)
        raise too_late(build.order, timeout_s) from error
    code = build.process.returncode
    if code < 0 and build.workers == 0:
        left = None if deadline is None else max(0.001, deadline - time.monotonic())
        return finish_build(begin_build(build.order, workers=1), left)
    check_outcome(build.order, code, output)
    return build.order.cache


def too_late(order: Order, timeout_s: float | None) -> StudyError:
    """Return the error of a build that took too long."""
    return StudyError(f"{order.source}: not read within {timeout_s:.0f} s; give one study at a time")


def check_outcome(order: Order, code: int, output: str) -> None:
    """Raise an error if the exit code of a build is not 0.

    Raises:
        StudyError: with the pipeline's message.
        NoRoomError: if the message is about the cache, which is temporary, so that its advice does not apply.
    """
    if code:
        words = _message(output, code, order.source)
        if words.startswith(str(order.cache.absolute())):
            raise no_room(words.split("; ")[0].partition(": ")[2])
        raise StudyError(words)


def end(build: Build) -> None:
    """Kill a build if it is still running."""
    if build.process.poll() is None:
        build.process.kill()
        build.process.communicate()


def _message(output: str, code: int, source: Path) -> str:
    """Return the error message in the output of `pipeline build`."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    last = lines[-1] if lines else ""
    if "ModuleNotFoundError" in last:
        return f"{last.removeprefix('ModuleNotFoundError: ')}: the pipeline is not fully installed; run: {INSTALL}"
    if last.startswith("error: "):
        return last.removeprefix("error: ")
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return (
        f"{source}: pipeline build ended with {how} ({last or 'without a message'}); try: pipeline build --src {source}"
    )
