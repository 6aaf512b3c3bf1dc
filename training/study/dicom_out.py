"""Read the headers that a DICOM answer must repeat, and write the answer's DICOM files."""

import io
import os
import re
import warnings
from collections.abc import Iterator, Mapping
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

# Of the modules Patient and General Study: type 2, so there, if empty.
TYPE_2 = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
          "AccessionNumber", "ReferringPhysicianName")  # fmt: skip
NOT_STATED = "not stated in the source"
UID_NAMES = ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID")


def write_dicom(
    folder: Path, source: Path, answer: Answer, heat: Heat | None, *, model: Mapping[str, Any], sr: bool
) -> None:
    """Write sr/study-<n>.dcm, with heat heatmap/study-<n>-series-<m>.dcm, and uids.csv where a UID was none.

    Args:
        source: the folder of the DICOM files; patient data come from there, and from nowhere else.

    Raises:
        StudyError: a file lacks what a DICOM answer must repeat, or is gone.
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
    replaced = replaced_uids(answer)
    if len(replaced):
        write_table(folder / "uids.csv", replaced)


def report_bytes(source: Path, answer: Answer, model: Mapping[str, Any]) -> bytes:
    """Return the structured report of the one study that an answer is of.

    Raises:
        StudyError: there are several, or as `write_dicom`.
    """
    if len(answer.studies) != 1:
        raise StudyError(f"{len(answer.studies)} studies, and an SR is about one; send one study at a time")
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


def valid_uid(uid: str) -> str:
    """Return a UID that is one as it is, else 2.25. and the number of its text's UUID, which is always the same.

    Source: DICOM PS3.5 B.2 (UUID derived UID); RFC 9562, 5.5 (UUID version 5), with the name space of OIDs.
    """
    valid = len(uid) <= 64 and re.fullmatch(RE_VALID_UID, uid)
    return uid if valid else f"2.25.{uuid5(NAMESPACE_OID, uid).int}"


def replaced_uids(answer: Answer) -> pd.DataFrame:
    """Return the UIDs of an answer's slices that are none, and what stands for them in DICOM: original, given."""
    names = [name for name in UIDS["slices"] if name.endswith("_uid")]
    uids = pd.unique(answer.slices[names].to_numpy(str).ravel())
    pairs = [(uid, valid_uid(uid)) for uid in sorted(uids)]
    return pd.DataFrame([pair for pair in pairs if pair[0] != pair[1]], columns=["original", "given"])


def _completed(dataset: pydicom.Dataset) -> pydicom.Dataset:
    """Fill in, empty, what must be there, and the SOP class out of the file meta information; make UIDs valid.

    The slices of a series lie in one frame of reference, also where nothing names it.
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


def study_sources(answer: Answer, study: int, sources: Mapping[str, pydicom.Dataset]) -> list[pydicom.Dataset]:
    """Return the headers of a study's slices, each file once.

    Raises:
        StudyError: a file is gone.
    """
    lines = answer.slices[answer.slices["study"] == study]
    uids = list(dict.fromkeys(lines["sop_instance_uid"]))
    if any(uid not in sources for uid in uids):
        raise StudyError(
            f"study {study}: one of its files, to which a DICOM answer must refer, was removed in the meantime; "
            "keep the files, and run it again"
        )
    return [sources[uid] for uid in uids]
