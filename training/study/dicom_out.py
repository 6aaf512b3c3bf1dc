"""The DICOM files of an answer, and the source headers whose attributes they must repeat."""

import io
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_OID, uuid5

import pandas as pd
import pydicom
from pydicom.uid import RE_VALID_UID

from training.errors import StudyError
from training.run.tables import write_table
from training.study.answer import UIDS, Answer
from training.study.dicom_heat import parametric_map
from training.study.dicom_sr import structured_report
from training.study.model import Heat

# Type 2 attributes of the modules Patient and General Study: required, but may be empty.
TYPE_2 = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
          "AccessionNumber", "ReferringPhysicianName")  # fmt: skip
NOT_STATED = "not stated in the source"
Sources = Mapping[str, pydicom.Dataset]  # SOP Instance UID -> header
UID_NAMES = ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID")


def write_reports(folder: Path, sources: Sources, answer: Answer, model: Mapping[str, Any]) -> None:
    """Write a structured report per study, sr/study-<n>.dcm.

    Args:
        folder: folder of the answer.
        sources: from `open_sources`.
        answer: the answer.
        model: description of the model, from `describe`.

    Raises:
        StudyError: if a file lacks a required attribute.
    """
    for study in answer.studies["study"].tolist():
        made = structured_report(answer, study, study_sources(answer, study, sources), model)
        _save(made, folder / "sr" / f"study-{study}.dcm")


def write_heat_maps(folder: Path, sources: Sources, answer: Answer, heat: Heat, model: Mapping[str, Any]) -> None:
    """Write the heat maps of each series, heatmap/study-<n>-series-<m>.dcm; the rest is as for `write_reports`."""
    for study, series in answer.series[["study", "series"]].to_numpy().tolist():
        made = parametric_map(answer, (study, series), sources, heat, model)
        _save(made, folder / "heatmap" / f"study-{study}-series-{series}.dcm")


def report_bytes(source: Path, answer: Answer, model: Mapping[str, Any]) -> bytes:
    """Return the structured report of an answer's only study as the bytes of a DICOM file.

    Raises:
        StudyError: if there are several studies, or for the same reasons as in `open_sources` and `write_reports`.
    """
    if len(answer.studies) != 1:
        raise StudyError(f"{len(answer.studies)} studies, but an SR covers only one; send one study at a time")
    with open_sources(source, answer) as sources:
        content = io.BytesIO()
        structured_report(answer, 1, study_sources(answer, 1, sources), model).save_as(content)
        return content.getvalue()


@contextmanager
def open_sources(folder: Path, answer: Answer) -> Iterator[Sources]:
    """Yield the headers of an answer's files, the only source of patient data.

    Within this context highdicom and pydicom do not warn, because their warnings could quote patient data.

    Raises:
        StudyError: if a file has been removed.
    """
    with warnings.catch_warnings(), pydicom.config.disable_value_validation():
        warnings.simplefilter("ignore")
        sources = read_sources(folder, set(answer.slices["sop_instance_uid"]))
        for study in answer.studies["study"].tolist():
            study_sources(answer, study, sources)  # all files are there before anything is written
        yield sources


def write_replaced_uids(folder: Path, answer: Answer) -> None:
    """Write uids.csv if a UID is invalid."""
    replaced = replaced_uids(answer)
    if len(replaced):
        write_table(folder / "uids.csv", replaced)


def _save(dataset: pydicom.Dataset, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    dataset.save_as(path)


def read_sources(folder: Path, wanted: set[str]) -> dict[str, pydicom.Dataset]:
    """Return SOP Instance UID -> header of the wanted files, without pixels; missing type 2 attributes are empty."""
    found: dict[str, pydicom.Dataset] = {}
    for path in files_of(folder):
        try:
            with pydicom.config.disable_value_validation():
                dataset = pydicom.dcmread(path, stop_before_pixels=True, force=True)
                uid = str(dataset.get("SOPInstanceUID", ""))
        except Exception:  # the pipeline reports unreadable files
            continue
        if uid in wanted and uid not in found:
            found[uid] = _completed(dataset)
    return found


def files_of(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder as the pipeline does: links are followed, and each folder is visited once."""
    entered = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        entered.add(os.path.realpath(place))
        folders[:] = sorted(of for of in folders if os.path.realpath(os.path.join(place, of)) not in entered)
        yield from (Path(place, name) for name in sorted(names))


def valid_uid(uid: str) -> str:
    """Return a valid UID unchanged, and an invalid one as a UUID derived UID, the same for equal texts.

    Source: DICOM PS3.5 B.2 (UUID derived UID); RFC 9562, 5.5 (UUID version 5), with the name space of OIDs.
    """
    valid = len(uid) <= 64 and re.fullmatch(RE_VALID_UID, uid)
    return uid if valid else f"2.25.{uuid5(NAMESPACE_OID, uid).int}"


def replaced_uids(answer: Answer) -> pd.DataFrame:
    """Return the invalid UIDs of an answer's slices (original) and their replacements in DICOM (given)."""
    names = [name for name in UIDS["slices"] if name.endswith("_uid")]
    uids = pd.unique(answer.slices[names].to_numpy(str).ravel())
    pairs = [(uid, valid_uid(uid)) for uid in sorted(uids)]
    return pd.DataFrame([pair for pair in pairs if pair[0] != pair[1]], columns=["original", "given"])


def _completed(dataset: pydicom.Dataset) -> pydicom.Dataset:
    """Add missing type 2 attributes, and the SOP class from the file meta information, and make UIDs valid.

    Slices without a frame of reference get one per series.
    """
    if "SOPClassUID" not in dataset and "MediaStorageSOPClassUID" in dataset.file_meta:
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID
    if not dataset.get("FrameOfReferenceUID"):
        dataset.FrameOfReferenceUID = f"frame of reference of {dataset.SeriesInstanceUID}"
    for name in UID_NAMES:
        setattr(dataset, name, valid_uid(str(dataset[name].value)))
    for name in TYPE_2:
        if name not in dataset:
            setattr(dataset, name, "")
    method = dataset.get("DeidentificationMethod") or dataset.get("DeidentificationMethodCodeSequence")
    if dataset.get("PatientIdentityRemoved") == "YES" and not method:
        dataset.DeidentificationMethod = NOT_STATED
    return dataset


def study_sources(answer: Answer, study: int, sources: Sources) -> list[pydicom.Dataset]:
    """Return the headers of a study's files, in the order of its slices.

    Raises:
        StudyError: if a file has been removed.
    """
    lines = answer.slices[answer.slices["study"] == study]
    uids = list(dict.fromkeys(lines["sop_instance_uid"]))
    if any(uid not in sources for uid in uids):
        raise StudyError(
            f"study {study}: one of its files, which the DICOM answer refers to, was removed in the meantime; "
            "keep the files, and run the command again"
        )
    return [sources[uid] for uid in uids]
