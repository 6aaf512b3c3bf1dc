"""Helpers for tests of predictions for a study: a run that trains in a second, and studies with valid UIDs."""

import hashlib
from pathlib import Path

import numpy as np
import pydicom

from phantom.dataset import encode_study
from phantom.study import make_study
from testkit.fake_cache import write_cache
from testkit.tiny_run import settings, task, train
from training.data.cache import open_cache
from training.run.job import evaluate
from training.run.runs import Run

SIZE_PX = 32


def trained_run(folder: Path, *, scored: bool = True) -> Run:
    """Train a run for a second on a fake cache, and score it on validation if `scored`, so that it has thresholds."""
    cache = write_cache(folder / "train.zarr", patients=20, slices=3, sizes=(SIZE_PX,))
    run = train(folder / "run", cache.path, settings(epochs=1))
    if scored:
        evaluate(task(run, open_cache(cache.path)), "validation", tta=False)
    return run


def valid_uid(text: str) -> str:
    """Return a valid 2.25 UID for one of RSNA's `ID_...`, which are not valid."""
    return f"2.25.{int.from_bytes(hashlib.blake2b(text.encode(), digest_size=15).digest(), 'big')}"


def write_phantom(folder: Path, *, seed: int = 0, patient: int = 0, keep: int = 5, valid: bool = True) -> list[Path]:
    """Write the first slices of a phantom's first study; an SR can only refer to them if their UIDs are valid."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, data in list(encode_study(make_study(seed, patient, 0)))[:keep]:
        path = folder / name
        path.write_bytes(data)
        written.append(path)
        if valid:
            _with_valid_uids(path)
    return written


def _with_valid_uids(path: Path) -> None:
    with pydicom.config.disable_value_validation():
        dataset = pydicom.dcmread(path)
        for element in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"):
            setattr(dataset, element, valid_uid(str(dataset[element].value)))
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.FrameOfReferenceUID = valid_uid("frame of reference")
        dataset.SliceThickness = "5"
        dataset.PatientName, dataset.PatientBirthDate = "SECRET^NAME", "19010203"
        dataset.save_as(path)


def change(path: Path, **elements: object) -> None:
    """Change elements of a DICOM file."""
    with pydicom.config.disable_value_validation():
        dataset = pydicom.dcmread(path)
        for name, value in elements.items():
            setattr(dataset, name, value)
        dataset.save_as(path)


def chest(folder: Path, slices: int = 3) -> list[Path]:
    """Write slices of a chest: a body with two lungs."""
    files = write_phantom(folder, patient=1, keep=slices)
    y, x = np.mgrid[:512, :512]
    body = ((x - 256) / 220) ** 2 + ((y - 256) / 160) ** 2 < 1
    lungs = sum(((x - at) / 75) ** 2 + ((y - 256) / 110) ** 2 < 1 for at in (150, 362)) > 0
    for path in files:
        dataset = pydicom.dcmread(path)
        hu = np.where(lungs, -850, np.where(body, 40, -1000))
        stored = np.clip(hu - int(dataset.RescaleIntercept), -2048, 4095)
        dataset.PixelData = stored.astype("<i2" if dataset.PixelRepresentation else "<u2").tobytes()
        dataset.save_as(path)
    return files
