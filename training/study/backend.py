"""The studies of the service: a few are built at once, the model predicts one at a time, each has a time limit."""

import functools
import queue
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training.errors import NoRoomError, StudyError, TrainingError
from training.report.heatmap import HeatMaps
from training.study.building import make_order
from training.study.document import to_document
from training.study.model import StudyModel, answer, describe, heat_maps, heat_of, images_of
from training.study.page import study_page
from training.study.pipeline_process import PipelineProcess
from training.study.uploads import Refused
from training.study.writing import as_json

KINDS = {"json": "application/json", "page": "text/html; charset=utf-8", "sr": "application/dicom"}


@dataclass(frozen=True)
class Options:
    """The limits and options of the service.

    Attributes:
        waiting: maximum number of studies in progress, including those waiting; more are refused.
        builds: maximum number of studies built at once, each by its own pipeline process.
        seconds: time limit from the first byte of a request to its answer.
        megabytes: maximum size of a body.
        identifiers: whether a request may ask for UIDs in its answer.
        token: token that requests must send, or None.
    """

    waiting: int = 16
    builds: int = 2
    seconds: float = 120.0
    megabytes: int = 2048
    identifiers: bool = False
    token: str | None = None


@dataclass(frozen=True)
class Form:
    """The form of an answer.

    Attributes:
        kind: one of KINDS.
        heatmap: whether a page has heat maps.
        identifiers: whether the answer has UIDs and file names.
    """

    kind: str = "json"
    heatmap: bool = False
    identifiers: bool = False


@dataclass
class Counts:
    """Counts of requests by outcome, for /metrics; all methods are thread-safe."""

    in_hand: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    slices: int = 0
    seconds: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def enter(self, limit: int) -> bool:
        """Count a new request and return True, or return False if `limit` requests are in progress."""
        with self._lock:
            if self.in_hand >= limit:
                self.outcomes["refused_busy"] += 1
                return False
            self.in_hand += 1
            return True

    def leave(self, outcome: str, seconds: float, slices: int = 0) -> None:
        """Count the end of a request."""
        with self._lock:
            self.in_hand -= 1
            self.outcomes[outcome] += 1
            self.seconds += seconds
            self.slices += slices

    def to_text(self) -> str:
        """Return the counts in the text format of Prometheus."""
        with self._lock:
            lines = ["# TYPE ich_requests_total counter"]
            lines += [f'ich_requests_total{{outcome="{name}"}} {n}' for name, n in sorted(self.outcomes.items())]
            lines += ["# TYPE ich_slices_total counter", f"ich_slices_total {self.slices}"]
            lines += ["# TYPE ich_seconds_total counter", f"ich_seconds_total {self.seconds:.3f}"]
            lines += ["# TYPE ich_in_hand gauge", f"ich_in_hand {self.in_hand}"]
        return "\n".join(lines) + "\n"


class Backend:
    """A model in memory that answers studies, one at a time."""

    def __init__(self, model: StudyModel, options: Options) -> None:
        self.model, self.options, self.counts = model, options, Counts()
        self.about = describe(model)
        self._processes: queue.LifoQueue[PipelineProcess] = queue.LifoQueue()  # the last one used is warm
        for _ in range(options.builds):
            self._processes.put(PipelineProcess())
        self._model = threading.Lock()

    def start(self) -> None:
        """Start the pipeline processes in advance, rather than with the first study."""
        for process in list(self._processes.queue):
            process.start()

    def close(self) -> None:
        """End the pipeline processes."""
        for process in list(self._processes.queue):
            process.close()

    def serve(self, source: Path, work: Path, form: Form, deadline: float) -> tuple[bytes, int]:
        """Return the answer to the study in a folder.

        Args:
            source: the folder of DICOM files.
            work: an empty folder for the temporary cache.
            form: the requested form of the answer.
            deadline: time limit on the monotonic clock.

        Returns:
            The bytes of the answer, and the number of slices.

        Raises:
            Refused: if there is no slice to predict (422), or the deadline has passed (504).
            NoRoomError: if the disk for temporary files is full.
        """
        cache_path, run = self._build(source, work, deadline, identifiers=form.identifiers), self.model.run
        if not self._model.acquire(timeout=_left(deadline)):
            raise _late()
        try:
            found, cache = answer(self.model, cache_path, deadline)
            images = images_of(found, cache, run.config.size_px) if form.kind == "page" else None
            heat = heat_of(self._heat_maps, run, found, cache) if form.heatmap and images is not None else None
        except StudyError as error:
            raise _late() if time.monotonic() > deadline else Refused(422, str(error)) from error
        finally:
            self._model.release()
        document = to_document(found, self.about, identifiers=form.identifiers)
        if images is not None:
            return study_page(document, images, heat).encode(), len(found.slices)
        if form.kind == "sr":
            return _report(source, found, self.about), len(found.slices)
        return as_json(document).encode(), len(found.slices)

    @functools.cached_property
    def _heat_maps(self) -> HeatMaps:
        return heat_maps(self.model.run)

    def _build(self, source: Path, work: Path, deadline: float, *, identifiers: bool) -> Path:
        try:
            process = self._processes.get(timeout=_left(deadline))
        except queue.Empty:
            raise _late() from None
        try:
            return process.build(make_order(self.model.run, source, work, identifiers=identifiers), _left(deadline))
        except NoRoomError:
            raise
        except TrainingError as error:
            late = time.monotonic() > deadline
            raise _late() if late else Refused(422, _without_paths(str(error), source)) from error
        finally:
            self._processes.put(process)


def _report(source: Path, found: Any, about: Mapping[str, Any]) -> bytes:
    from training.study.dicom_out import report_bytes

    try:
        return report_bytes(source, found, about)
    except StudyError as error:
        raise Refused(422, str(error)) from error


def _left(deadline: float) -> float:
    return max(0.001, deadline - time.monotonic())


def _late() -> Refused:
    return Refused(504, "the study was not answered in time; send one study at a time, or allow more with --seconds")


def _without_paths(message: str, source: Path) -> str:
    """Return a message of the pipeline without the temporary folder and without its advice."""
    return message.replace(str(source.absolute()), "the upload").split("; ")[0]
