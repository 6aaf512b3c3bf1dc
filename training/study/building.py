"""Have the installed `pipeline` command build a temporary cache of a study, with a run's windows and size."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from training.errors import StudyError
from training.run.runs import Run

DISTRIBUTION, COMMAND = "ich-cache", "pipeline"
INSTALL = "pip install 'ich-cache[pipeline,codecs]'"
DATASET = "study"
# Of all studies the same, so that the same files give the same order of lines; it protects nobody, and the cache that
# it is used for is removed.
PATIENT_KEY = "00" * 32


@dataclass(frozen=True)
class Build:
    """A build that runs beside this process.

    Attributes:
        cache: the folder of the cache that it makes.
        source: the folder of DICOM files.
    """

    cache: Path
    source: Path
    command: tuple[str, ...]
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
        raise StudyError(f"the command {COMMAND} is not installed, it reads the DICOM files; run: {INSTALL}")
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


def begin_build(run: Run, source: Path, work: Path, *, identifiers: bool = False, workers: int = 0) -> Build:
    """Start `pipeline build` of a study beside this process, so that torch is imported meanwhile.

    Args:
        work: a folder that holds the cache and the build's settings.
        workers: processes; 0 builds in the command's own, which starts soonest.

    Raises:
        StudyError: the command is not installed.
    """
    cache, catalog, key = work / "cache.zarr", work / "catalog.yaml", work / "patient.key"
    write_catalog(catalog, run, identifiers=identifiers)
    key.write_text(PATIENT_KEY)
    key.chmod(0o600)
    options = ["--catalog", catalog, "--dataset", DATASET, "--workers", workers, "--max-rejects", "100%"]
    if not identifiers:
        options += ["--patient-key", key]
    command = tuple(map(str, (find_pipeline(), "build", "--src", source.absolute(), "--out", cache, *options)))
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=work,
        env=os.environ | {"PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip
    return Build(cache, source, command, process)


def finish_build(build: Build, timeout_s: float | None = None) -> Path:
    """Wait for a build and return its cache.

    A file that kills the decoder kills a build in one process: that is tried again with a worker of its own, whose
    death leaves a line among the rejects.

    Raises:
        StudyError: no file of it is a CT slice, the build failed, or it took too long; in the pipeline's own words.
    """
    try:
        said = build.process.communicate(timeout=timeout_s)[1]
    except subprocess.TimeoutExpired as error:
        end(build)
        raise StudyError(f"{build.source}: not read within {timeout_s:.0f} s; give one study at a time") from error
    code = build.process.returncode
    if code < 0 and "--workers 0" in " ".join(build.command):
        at = build.command.index("--workers")
        again = (*build.command[: at + 1], "1", *build.command[at + 2 :])
        process = subprocess.Popen(again, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        return finish_build(Build(build.cache, build.source, again, process), timeout_s)
    if code:
        raise StudyError(_last_words(said, code, build.source))
    return build.cache


def end(build: Build) -> None:
    """End a build that is no longer wanted."""
    if build.process.poll() is None:
        build.process.kill()
        build.process.communicate()


def _last_words(said: str, code: int, source: Path) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    last = lines[-1] if lines else ""
    if "ModuleNotFoundError" in last:
        return f"{last.removeprefix('ModuleNotFoundError: ')}: the pipeline is not whole; run: {INSTALL}"
    if last.startswith("error: "):
        return last.removeprefix("error: ")
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return f"{source}: pipeline build ended with {how} ({last or 'without a word'}); try: pipeline build --src {source}"


def temporary_folder() -> "tempfile.TemporaryDirectory[str]":
    """Return a folder for a study's temporary cache, readable by this user alone, and removed afterwards."""
    return tempfile.TemporaryDirectory(prefix="ich-study-", ignore_cleanup_errors=True)
