"""Read the headers that a DICOM answer must repeat, and write the answer's DICOM files."""

import io
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pydicom
from pydicom.uid import UID

from training.errors import StudyError
from training.study.answer import Answer
from training.study.dicom_heat import parametric_map
from training.study.dicom_sr import structured_report
from training.study.model import Heat

# Of the modules Patient and General Study: type 2, so there, if empty.
TYPE_2 = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
          "AccessionNumber", "ReferringPhysicianName")  # fmt: skip
NOT_STATED = "not stated in the source"


def write_dicom(
    folder: Path, source: Path, answer: Answer, heat: Heat | None, *, model: Mapping[str, Any], sr: bool
) -> None:
    """Write sr/study-<n>.dcm, and with heat heatmap/study-<n>-series-<m>.dcm.

    Args:
        source: the folder of the DICOM files; patient data come from there, and from nowhere else.

    Raises:
        StudyError: a UID is none, or a file lacks what a DICOM answer must repeat.
    """
    # highdicom and pydicom would quote patient data in their warnings.
    with warnings.catch_warnings(), pydicom.config.disable_value_validation():
        warnings.simplefilter("ignore")
        sources = read_sources(source, set(answer.slices["sop_instance_uid"]))
        for study in answer.studies["study"].tolist():
            datasets = study_sources(answer, study, sources)
            if sr:
                _save(structured_report(answer, study, datasets, model), folder / "sr" / f"study-{study}.dcm")
            for series in answer.series.loc[answer.series["study"] == study, "series"].tolist() if heat else ():
                assert heat is not None
                made = parametric_map(answer, study, series, sources, heat, model=model)
                _save(made, folder / "heatmap" / f"study-{study}-series-{series}.dcm")


def report_bytes(source: Path, answer: Answer, model: Mapping[str, Any]) -> bytes:
    """Return the structured report of the one study that an answer is of.

    Raises:
        StudyError: there are several, or as `write_dicom`.
    """
    if len(answer.studies) != 1:
        raise StudyError(f"{len(answer.studies)} studies, and an SR is of one; send one study at a time")
    with warnings.catch_warnings(), pydicom.config.disable_value_validation():
        warnings.simplefilter("ignore")
        sources = read_sources(source, set(answer.slices["sop_instance_uid"]))
        content = io.BytesIO()
        structured_report(answer, 1, study_sources(answer, 1, sources), model).save_as(content)
        return content.getvalue()


def _save(dataset: pydicom.Dataset, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    dataset.save_as(path)


def read_sources(folder: Path, wanted: set[str]) -> dict[str, pydicom.Dataset]:
    """Return by SOP Instance UID the headers of the files that gave slices; pixels are not read.

    A name that the standard calls for and the file lacks is there, empty.
    """
    found: dict[str, pydicom.Dataset] = {}
    for path in files_of(folder):
        try:
            with pydicom.config.disable_value_validation():
                dataset = pydicom.dcmread(path, stop_before_pixels=True, force=True)
                uid = str(dataset.get("SOPInstanceUID", ""))
        except Exception:  # whatever is wrong with a file that gave a slice is the pipeline's to say
            continue
        if uid in wanted and uid not in found:
            found[uid] = _completed(dataset)
    return found


def files_of(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder, through links too, each folder once; as the pipeline finds them."""
    entered = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        entered.add(os.path.realpath(place))
        folders[:] = sorted(of for of in folders if os.path.realpath(os.path.join(place, of)) not in entered)
        yield from (Path(place, name) for name in sorted(names))


def _completed(dataset: pydicom.Dataset) -> pydicom.Dataset:
    """Fill in, empty, what must be there, and the SOP class out of the file meta information."""
    if "SOPClassUID" not in dataset and "MediaStorageSOPClassUID" in dataset.file_meta:
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID
    for name in TYPE_2:
        if name not in dataset:
            setattr(dataset, name, "")
    method = dataset.get("DeidentificationMethod") or dataset.get("DeidentificationMethodCodeSequence")
    if dataset.get("PatientIdentityRemoved") == "YES" and not method:
        dataset.DeidentificationMethod = NOT_STATED
    return dataset


def study_sources(answer: Answer, study: int, sources: Mapping[str, pydicom.Dataset]) -> list[pydicom.Dataset]:
    """Return the headers of a study's slices, each file once.

    Raises:
        StudyError: a UID of the study is none: what DICOM writes must not refer to it.
    """
    lines = answer.slices[answer.slices["study"] == study]
    uids = list(dict.fromkeys(lines["sop_instance_uid"]))
    for uid in (*uids, *lines["series_instance_uid"].unique(), *lines["study_instance_uid"].unique()):
        if not UID(str(uid)).is_valid:
            raise StudyError(
                f"study {study}: {uid} is no valid UID, so no DICOM answer can refer to it; "
                "leave --sr and --heatmap out"
            )
    return [sources[uid] for uid in uids]
