"""Write synthetic studies as DICOM files and labels in the form of RSNA 2019."""

import csv
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from phantom.compiled import Array
from phantom.errors import PhantomError
from phantom.study import LABELS, Study, count_studies, make_study
from phantom.write import SliceAttributes, encode_slice


@dataclass(frozen=True, slots=True)
class Summary:
    """The number of patients, studies, slices, and positive slices of each class in the order of LABELS."""

    patients: int
    studies: int
    slices: int
    positive: dict[str, int]


def write(  # noqa: PLR0913  # options of the command
    out: Path,
    patients: int,
    seed: int,
    progress: Callable[[int], None] | None = None,
    *,
    workers: int = 0,
    make: Callable[[int, int, int], Study] | None = None,
) -> Summary:
    """Write `out/dicoms/ID_<9 hex>.dcm` and `out/labels.csv`, six lines per slice, the same for any number of workers.

    Args:
        out: folder.
        patients: number of patients.
        seed: of all random numbers.
        progress: called after each patient with the number of patients done.
        workers: number of processes; 0 runs in this one.
        make: function of seed, patient and number that makes a study; None for `make_study`. See also `planted`.

    Raises:
        PhantomError: `out/dicoms` is not empty.
    """
    folder = _make_empty(out / "dicoms")
    positive, studies, slices = np.zeros(len(LABELS), np.int64), 0, 0
    with (out / "labels.csv").open("w", newline="") as file, _mapper(workers) as each:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("ID", "Label"))
        for done, made in enumerate(
            each(partial(_write_patient, folder, seed, make or make_study), range(patients)), 1
        ):
            for uids, labels in made:
                table.writerows(label_rows(uids, labels))
                studies, slices = studies + 1, slices + len(uids)
                positive += labels.sum(0, dtype=np.int64)
            if progress is not None:
                progress(done)
    return Summary(patients, studies, slices, dict(zip(LABELS, positive.tolist(), strict=True)))


@contextmanager
def _mapper(workers: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """Return `map` over processes, in order. They are spawned, as forking a process with threads may hang."""
    if not workers:
        yield map
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield pool.map


def _write_patient(
    folder: Path, seed: int, make: Callable[[int, int, int], Study], patient: int
) -> list[tuple[tuple[str, ...], Array]]:
    """Write a patient's files; return the UIDs and (N, 6) labels of each study."""
    made = []
    for number in range(count_studies(seed, patient)):
        study = make(seed, patient, number)
        for name, data in encode_study(study):
            (folder / name).write_bytes(data)
        made.append((study.uids, study.labels))
    return made


def _make_empty(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if next(folder.iterdir(), None) is not None:
        raise PhantomError(f"{folder}: not empty, and its files would mix with the new ones; choose another --out")
    return folder


def encode_study(study: Study) -> Iterator[tuple[str, bytes]]:
    """Yield the file name and the DICOM bytes of each slice."""
    for uid, position, stored in zip(study.uids, study.geometry.positions.tolist(), study.stored, strict=True):
        attributes = SliceAttributes(
            sop_instance_uid=uid,
            patient_id=study.patient_id,
            study_instance_uid=study.study_instance_uid,
            series_instance_uid=study.series_instance_uid,
            position=tuple(position),
            orientation=study.geometry.orientation,
            spacing_mm=(study.geometry.spacing_mm, study.geometry.spacing_mm),
            bits_stored=study.coding.bits_stored,
            intercept=study.coding.intercept,
            windows=study.windows,
            implicit_vr=study.implicit_vr,
        )
        yield f"{uid}.dcm", encode_slice(stored, attributes)


def label_rows(uids: tuple[str, ...], labels: Array) -> Iterator[tuple[str, int]]:
    """Yield (`ID_<9 hex>_<class>`, 0 or 1), six a slice in the order of LABELS, from UIDs and (N, 6) labels."""
    for uid, row in zip(uids, labels.tolist(), strict=True):
        for name, label in zip(LABELS, row, strict=True):
            yield f"{uid}_{name}", label
