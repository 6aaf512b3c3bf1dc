"""The folder of a run: its settings, its split, its log and its results."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from training.data.cache import Cache
from training.data.linked import FILE as LINKED
from training.data.linked import IDENTITY, left_out_lines, read_linked
from training.data.mirror import absolute
from training.data.neighbours import Context, choose_context
from training.data.split import SUBSETS, read_split, write_split
from training.errors import ConfigError, RunError
from training.run import config as settings
from training.run.config import TrainConfig
from training.run.data_section import Data, read_data, windows_of
from training.run.digests import begin, cannot_write, check, refuse_special_files
from training.run.documents import read_document
from training.run.functions import announce
from training.run.owner import HOLDER, LOCK, owned
from training.run.tables import write_json, write_table
from training.system import read_whole

UNFINISHED = ".unfinished"  # marks the folder of a run that is being created


@dataclass(frozen=True)
class Run:
    """A run's folder and the settings in it."""

    path: Path
    config: TrainConfig
    data: Data
    environment: Mapping[str, Any]

    @property
    def log(self) -> Path:
        """Path of the log, a CSV file with LOG_COLUMNS."""
        return self.path / "log.csv"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def weights(self) -> Path:
        """Path of the weights with the best validation log loss."""
        return self.path / "weights.safetensors"

    @property
    def has_head(self) -> bool:
        """Whether this is a head over series, on the features of a slice model."""
        return self.config.head != "none"

    @property
    def slice_weights(self) -> Path:
        """Path of the weights of the slice network."""
        return self.path / "slice_weights.safetensors" if self.has_head else self.weights

    @property
    def context(self) -> Context | None:
        """The neighbouring slices that the network sees; None if it sees single slices."""
        return choose_context(self.config.context, self.config.context_windows, self._window_names)

    @property
    def channels(self) -> tuple[int, ...]:
        """The window of each channel of the network's input."""
        number = len(self._window_names)
        return tuple(range(number)) if self.context is None else self.context.channels(number)

    @property
    def mean_std(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of grey level / 255 for each channel of the network's input, (C,) float64."""
        channels = list(self.channels)
        return np.array(self.data.mean)[channels], np.array(self.data.std)[channels]

    @property
    def _window_names(self) -> tuple[str, ...]:
        return tuple(name for name, _, _ in self.data.windows)

    @property
    def split(self) -> Path:
        return self.path / "split.csv"

    def has(self, subset: str) -> bool:
        """Return whether the run's settings give this subset a share of the patients."""
        shares = self.config.split_fractions
        return shares is None or shares[SUBSETS.index(subset)] > 0

    def subsets(self, cache: Cache) -> np.ndarray:
        """Return the subset of each line of the cache, (N,) str: train, validation or test.

        Raises:
            RunError: if split.csv is not the one that the run started with, or does not fit the cache.
        """
        self.check_split()
        return read_split(self.split, cache.table)

    def check_split(self) -> None:
        """Raise a RunError unless split.csv is the one that the run started with."""
        if digest(self.split) != self.data.split:
            raise RunError(f"{self.split}: is not the split that the run started with; restore it, or start a new run")

    def left_out(self, cache: Cache) -> np.ndarray:
        """Return (N,) bool: the lines of the cache that the run neither trains on nor scores, according to linked.csv.

        Raises:
            RunError: if linked.csv is not the one that the run started with.
        """
        linked = self.linked()
        return np.zeros(cache.num_slices, bool) if linked is None else left_out_lines(linked, cache)

    def linked(self) -> pd.DataFrame | None:
        """Return the table of patients who share slices, see `linked.table_of`; None in a run from before linked.csv.

        Raises:
            RunError: if linked.csv is not the one that the run started with.
        """
        if not self.data.linked:
            return None
        file = self.path / LINKED
        if digest(file) != self.data.linked:
            raise RunError(f"{file}: is not the one that the run started with; restore it, or start a new run")
        return read_linked(file)


@contextmanager
def new_folder(path: Path) -> Iterator[None]:
    """Create the folder of a new run, to be filled within the context; after a kill, the same command can reuse it.

    Raises:
        RunError: if the folder exists and is not empty, or another process is creating a run there.
    """
    check_free(path)
    make_folder(path)
    with owned(path, "is creating a run there"):
        check_free(path)  # another process may have created one in the meantime
        (path / UNFINISHED).touch()
        begin(path)
        yield
        (path / UNFINISHED).unlink()


@dataclass(frozen=True)
class NewRun:
    """The content of a new run's folder.

    Attributes:
        config: settings of the run.
        subsets: (N,) str, the subset of each line of the cache.
        mean_std: (C,) float64 each, of grey level / 255 over the training slices.
        environment: versions and hardware.
        linked: table from `linked.table_of`; None if no patients share slices.
        base: for a head over series: `Data.base` and `Data.base_weights`.
    """

    config: TrainConfig
    subsets: np.ndarray
    mean_std: tuple[np.ndarray, np.ndarray]
    environment: Mapping[str, Any]
    linked: pd.DataFrame | None = None
    base: Mapping[str, str] = field(default_factory=dict)


def create_run(path: Path, cache: Cache, new: NewRun) -> Run:
    """Create a run's folder with settings.json, split.csv and linked.csv.

    settings.json is written last, so a folder that has it is a complete run.

    Args:
        path: the folder.
        cache: on which the run is trained.
        new: the content of the files.

    Raises:
        RunError: if the folder exists and is not empty.
    """
    check_free(path)
    make_folder(path)
    begin(path)
    split = path / "split.csv"
    write_split(split, cache.table, new.subsets)
    nothing = pd.DataFrame(columns=["group", "unit", *IDENTITY, *cache.classes, "done"])
    write_table(path / LINKED, nothing if new.linked is None else new.linked)
    mean, std = new.mean_std
    data = Data(
        cache=absolute(cache.path),
        commit=cache.commit,
        classes=cache.classes,
        class_weights=tuple(float(weight) for weight in cache.class_weights),
        windows=windows_of(cache),
        mean=tuple(mean.tolist()),
        std=tuple(std.tolist()),
        split=digest(split),
        linked=digest(path / LINKED),
        label_level=cache.label_level,
        **new.base,
    )
    run = Run(path, new.config, data, new.environment)
    run.checkpoints.mkdir(exist_ok=True)
    write_json(
        path / "settings.json",
        {"config": settings.to_mapping(new.config), "data": asdict(data), "environment": dict(new.environment)},
    )
    return run


def make_folder(path: Path) -> None:
    """Create a folder; raise a RunError if that fails."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error


def check_free(path: Path) -> None:
    """Raise a RunError unless `path` can be used for a new run: it is missing, empty, or left by a killed command."""
    is_run = (path / "settings.json").exists()
    if is_run or (path.exists() and (not path.is_dir() or _is_in_use(path))):
        remedy = f"to continue it: train run --resume {path}" if is_run else "choose another folder"
        raise RunError(f"{path}: exists and is not empty; {remedy}")


def _is_in_use(path: Path) -> bool:
    """Return whether a folder has files other than those left by a command that was killed while creating a run."""
    names = {entry.name for entry in path.iterdir()}
    return UNFINISHED not in names and not names <= {LOCK, HOLDER}


def open_run(path: Path) -> Run:
    """Open a run and read its settings.

    The user's own code that the settings refer to is announced on stderr before it is imported.

    Raises:
        RunError: if there is no run, its settings cannot be read, or it refers to code in its own folder.
    """
    file = path / "settings.json"
    if not file.exists():
        raise RunError(f"{path}: not a run, it has no settings.json; to make one: train run --cache C --out {path}")
    refuse_special_files(path)
    check(file, "restore it, or start a new run")
    try:
        content = read_document(file)
        data = read_data(content["data"])
        run = Run(path, settings.from_mapping(content["config"]), data, dict(content["environment"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, ConfigError) as error:
        raise RunError(f"{file}: cannot be read ({error}); restore it, or start a new run") from error
    announce(path, (run.config.model, run.config.loss, run.config.augment))
    return run


def check_compatible(run: Run, cache: Cache) -> None:
    """Raise a RunError unless the cache suits the run's model: same windows, size, and classes if it has any."""
    if (windows := windows_of(cache)) != run.data.windows:
        raise RunError(
            f"{cache.path}: built for windows {_words(windows)}; the run {run.path} needs {_words(run.data.windows)}; "
            "run: pipeline build with the run's windows in data_catalog.yaml"
        )
    if cache.classes and cache.classes != run.data.classes:
        raise RunError(
            f"{cache.path}: has classes {', '.join(cache.classes)}; the run {run.path} has "
            f"{', '.join(run.data.classes)}; run: pipeline build with the run's classes in data_catalog.yaml"
        )
    cache.array(run.config.size_px)


def _words(windows: tuple[tuple[str, float, float], ...]) -> str:
    return ", ".join(f"{name} ({level:g}, {width:g})" for name, level, width in windows)


def digest(path: Path) -> str:
    """Return the SHA-256 of a run's file in hexadecimal."""
    try:
        return hashlib.sha256(read_whole(path)).hexdigest()
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror}); restore it, or start a new run") from error
