"""Log runs to experiment trackers: TensorBoard and, on request, MLflow and Weights & Biases."""

import difflib
import functools
import json
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from tqdm import tqdm

from training.errors import ConfigError
from training.run import config as settings
from training.run.runs import Run
from training.run.tables import write_json

E = TypeVar("E")
Line = Mapping[str, float]  # a line of log.csv: `step`, and the values measured at it
IDENTITY = "tracker.json"
FILES = ("report.html", "model_card.md", "log.csv")
# Maximum per request. Source: MLflow REST API, request limits.
MLFLOW_METRICS = 1000
MLFLOW_PARAMETERS = 100


class Logger(Protocol):
    """An experiment tracker. A resumed run logs some steps twice, with the same values."""

    def log(self, lines: Sequence[Line]) -> None:
        """Log lines of log.csv."""

    def finish(self, scores: Mapping[str, float], files: Sequence[Path]) -> None:
        """Log the scores of a finished run, and upload its files."""

    def close(self) -> None:
        """Flush everything; the run may be resumed later."""


class TensorBoard:
    """Event files in the run's folder."""

    def __init__(self, run: Run, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes 1 s

        _silence_writers()
        # Discard everything logged after the checkpoint from which the run resumes.
        self._writer = SummaryWriter(str(run.path / "tensorboard"), purge_step=step or None)

    def log(self, lines: Sequence[Line]) -> None:
        for line in lines:
            for name, value in _measured(line):
                self._writer.add_scalar(name, value, int(line["step"]))
        self._writer.flush()

    def show(self, name: str, images: np.ndarray) -> None:
        """Log images, (B, C, S, S) uint8 with 1 or 3 channels."""
        self._writer.add_images(name, images)
        self._writer.flush()

    def finish(self, scores: Mapping[str, float], files: Sequence[Path]) -> None:
        for name, value in scores.items():
            self._writer.add_scalar(name, value)

    def close(self) -> None:
        self._writer.close()


@functools.cache
def _silence_writers() -> None:
    """Suppress tracebacks from TensorBoard's writer threads: the next call of their writer raises the same error."""
    before = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        if not type(args.thread).__module__.startswith("tensorboard."):
            before(args)

    threading.excepthook = hook


class MLflow:
    """A run on an MLflow server or store, chosen by MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME."""

    def __init__(self, run: Run, step: int) -> None:
        from mlflow.tracking import MlflowClient  # takes 10 s

        self._client = MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "Default")
        known = self._client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self._client.create_experiment(name)
        tag = identity(run)
        found = self._client.search_runs([experiment], f"tags.ich_run = '{tag}'")
        self._id = found[0].info.run_id if found else self._begin(experiment, run, tag)
        self._client.update_run(self._id, status="RUNNING")

    def _begin(self, experiment: str, run: Run, tag: str) -> str:
        from mlflow.entities import Param

        made = self._client.create_run(experiment, run_name=run.path.name, tags={"ich_run": tag})
        given = [Param(name, str(value)) for name, value in parameters(run).items()]
        for some in _batched(given, MLFLOW_PARAMETERS):
            self._client.log_batch(made.info.run_id, params=some)
        return str(made.info.run_id)

    def log(self, lines: Sequence[Line]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, int(line["step"])) for line in lines for name, value in _measured(line)]
        for some in _batched(metrics, MLFLOW_METRICS):
            self._client.log_batch(self._id, metrics=some)

    def finish(self, scores: Mapping[str, float], files: Sequence[Path]) -> None:
        self.log([{"step": 0, **scores}])
        for file in files:
            self._client.log_artifact(self._id, str(file))
        self._client.set_terminated(self._id)

    def close(self) -> None:
        """Do nothing: nothing is buffered, and a stopped run keeps the status "running" until it is finished."""


class WandB:
    """A Weights & Biases run, configured by WANDB_PROJECT, WANDB_MODE and its other variables."""

    def __init__(self, run: Run, step: int) -> None:
        import wandb  # takes 2 s

        self._wandb = wandb
        self._run = wandb.init(
            id=identity(run), resume="allow", name=run.path.name, dir=str(run.path), config=parameters(run)
        )
        # W&B's own step counter cannot go back, but a resumed run logs some steps twice.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, lines: Sequence[Line]) -> None:
        for line in lines:
            self._run.log({"step": int(line["step"]), **dict(_measured(line))})

    def finish(self, scores: Mapping[str, float], files: Sequence[Path]) -> None:
        self._run.summary.update(dict(scores))
        artifact = self._wandb.Artifact(f"report-{self._run.id}", type="report")
        for file in files:
            artifact.add_file(str(file))
        self._run.log_artifact(artifact)

    def close(self) -> None:
        self._run.finish()


LOGGERS: dict[str, Callable[[Run, int], Logger]] = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}
CSV = "csv"  # log.csv is part of every run


class Loggers:
    """The trackers of a run. If one fails during the run, it is dropped with a message, and the run continues."""

    def __init__(self, run: Run, names: Sequence[str], step: int) -> None:
        """Open trackers by name for a run that has taken `step` steps.

        Raises:
            ConfigError: if there is no such tracker, its package is missing, or it cannot be reached.
        """
        check_loggers(names)
        self._open = {name: _open(run, name, step) for name in dict.fromkeys(names) if name != CSV}

    def log(self, lines: Sequence[Line]) -> None:
        """Log lines of log.csv to all trackers."""
        self._each(lambda logger: logger.log(lines))

    @property
    def show_images(self) -> bool:
        """Whether any of them accepts images, as TensorBoard does."""
        return any(isinstance(logger, TensorBoard) for logger in self._open.values())

    def show(self, name: str, images: np.ndarray) -> None:
        """Log images, (B, C, S, S) uint8 with 1 or 3 channels, to the trackers that accept them."""
        self._each(lambda logger: logger.show(name, images) if isinstance(logger, TensorBoard) else None)

    def finish(self, run: Run, scores: Mapping[str, Any]) -> None:
        """Log the scores of the run's subsets, by subset, and upload its report."""
        files = [file for name in FILES if (file := run.path / name).exists()]
        flat = {name: value for subset, of in scores.items() for name, value in _flat(of, subset)}
        self._each(lambda logger: logger.finish(flat, files))

    def close(self) -> None:
        """Flush and close all trackers."""
        self._each(lambda logger: logger.close())

    def _each(self, act: Callable[[Logger], None]) -> None:
        for name, logger in list(self._open.items()):
            try:
                act(logger)
            except Exception as error:  # each tracker, and the network below it, has its own errors
                del self._open[name]
                reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
                tqdm.write(
                    f"{name}: stopped logging ({reason}); the run continues, and log.csv has everything",
                    sys.stderr,
                )


def parse_loggers(text: str) -> tuple[str, ...]:
    """Return the trackers in a comma-separated list.

    Raises:
        ConfigError: if one is unknown.
    """
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    check_loggers(names)
    return names


def check_loggers(names: Iterable[str]) -> None:
    """Raise a ConfigError if any name is not that of a tracker."""
    known = [*LOGGERS, CSV]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"the trackers are {', '.join(known)}"
            raise ConfigError(f"--logger {name}: no such tracker; {hint}")


def identity(run: Run) -> str:
    """Return the id of a run in trackers, 16 hex digits, which is generated once and kept in the run's folder."""
    file = run.path / IDENTITY
    if not file.exists():
        write_json(file, {"id": uuid.uuid4().hex[:16]})
    return str(json.loads(file.read_bytes())["id"])


def parameters(run: Run) -> dict[str, Any]:
    """Return the parameters of a run that trackers record: settings, commit and versions, but no paths."""
    given = settings.to_mapping(run.config) | {"commit": run.data.commit}
    given |= {name: value for name, value in run.environment.items() if name != "weights"}
    return {name.replace(":", "/"): value for name, value in given.items()}


def _open(run: Run, name: str, step: int) -> Logger:
    try:
        return LOGGERS[name](run, step)
    except ImportError as error:
        raise ConfigError(
            f"--logger {name}: needs the package {error.name}; run: pip install 'ich-cache[{name}]'"
        ) from error
    except Exception as error:  # each tracker, and the network below it, has its own errors
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ConfigError(
            f"--logger {name}: cannot be reached ({reason}); check its address and your access, or leave it out"
        ) from error


def _batched(entries: list[E], most: int) -> Iterator[list[E]]:
    for first in range(0, len(entries), most):
        yield entries[first : first + most]


def _measured(line: Line) -> list[tuple[str, float]]:
    return [(name, float(value)) for name, value in line.items() if name not in ("step", "epoch")]


def _flat(scores: Mapping[str, Any], prefix: str) -> Iterable[tuple[str, float]]:
    """Yield a subset's scores by name: test/weighted_log_loss, test/classes/any/roc_auc."""
    for name, value in scores.items():
        if isinstance(value, Mapping) and name not in ("source", "intervals"):
            yield from _flat(value, f"{prefix}/{name}")
        elif isinstance(value, int | float) and not isinstance(value, bool) and value == value:
            yield f"{prefix}/{name}", float(value)
