"""Make small DICOM files with pydicom, so that the reader is tested against another implementation."""

import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import config, dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian

from pipeline.dicom.read import read_slices
from pipeline.dicom.records import Reject, Slice
from pipeline.dicom.rejects import REJECT_CODES
from pipeline.planning.catalog import Reading

KEEP = Reading(patient_ids="keep")
AXIAL = [1, 0, 0, 0, 1, 0]
CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"


def gradient(height: int = 12, width: int = 10, dtype: str = "int16") -> np.ndarray:
    """Return distinct stored values, with HU below and above zero."""
    return (np.arange(height * width).reshape(height, width) * 7 + 900).astype(dtype)


@contextmanager
def _unchecked() -> Iterator[None]:
    """Make pydicom accept values that the standard forbids, such as RSNA's UIDs, without a warning."""
    settings = config.settings
    reading, writing = settings.reading_validation_mode, settings.writing_validation_mode
    settings.reading_validation_mode = settings.writing_validation_mode = config.IGNORE
    try:
        yield
    finally:
        settings.reading_validation_mode, settings.writing_validation_mode = reading, writing


@_unchecked()
def ct_dataset(stored: np.ndarray, **changes: Any) -> Dataset:
    """Return a CT slice; `changes` are attributes to set, or to remove if None."""
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = CT_IMAGE, "1.2.3.1"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.3", "1.2.3.4"
    dataset.Modality, dataset.PatientID, dataset.Manufacturer = "CT", "P1", "SIEMENS"
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [-100, -120, 42.5], AXIAL
    dataset.InstanceNumber, dataset.SliceLocation = 3, 42.5
    dataset.Rows, dataset.Columns = stored.shape[-2:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = stored.dtype.itemsize * 8
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(stored.dtype.kind == "i")
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
    for name, value in changes.items():
        if name in ("BitsStored",):
            dataset.HighBit = value - 1
    for name, value in changes.items():
        if value is None:
            dataset.pop(name, None)
            continue
        setattr(dataset, name, value)
    dataset.PixelData = stored.astype(stored.dtype.newbyteorder("<")).tobytes()
    return dataset


@_unchecked()
def encode(dataset: Dataset, transfer_syntax: str = ExplicitVRLittleEndian, preamble: bool = True) -> bytes:
    """Encode a data set as a file."""
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = transfer_syntax
    file = io.BytesIO()
    dcmwrite(file, dataset, enforce_file_format=preamble, implicit_vr=None, little_endian=None)
    return file.getvalue()


def ct_file(stored: np.ndarray, transfer_syntax: str = ExplicitVRLittleEndian, **changes: Any) -> bytes:
    """Return a CT slice as a file."""
    return encode(ct_dataset(stored, **changes), transfer_syntax)


def frame_groups(z_mm: float, slope: float, intercept: float, kind: str = "HU") -> Dataset:
    """Return the functional groups of one frame of an enhanced CT."""
    position, orientation, values, group = Dataset(), Dataset(), Dataset(), Dataset()
    position.ImagePositionPatient = [0, 0, z_mm]
    orientation.ImageOrientationPatient = AXIAL
    values.RescaleSlope, values.RescaleIntercept, values.RescaleType = slope, intercept, kind
    group.PlanePositionSequence = Sequence([position])
    group.PlaneOrientationSequence = Sequence([orientation])
    group.PixelValueTransformationSequence = Sequence([values])
    return group


def enhanced_file(stored: np.ndarray, groups: list[Dataset], **changes: Any) -> bytes:
    """Return an enhanced multi-frame CT of (frames, H, W) stored values as a file."""
    absent = dict.fromkeys(
        ("RescaleSlope", "RescaleIntercept", "ImagePositionPatient", "ImageOrientationPatient", "SliceLocation")
    )
    dataset = ct_dataset(stored, SOPClassUID=ENHANCED_CT, NumberOfFrames=len(stored), **absent | changes)
    dataset.SharedFunctionalGroupsSequence = Sequence([Dataset()])
    dataset.PerFrameFunctionalGroupsSequence = Sequence(groups)
    return encode(dataset)


def deflate(data: bytes) -> bytes:
    """Compress with raw deflate, as in the deflated transfer syntax."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(data) + packer.flush()


# --- reading -------------------------------------------------------------------------------------------------------


def read(data: bytes, reading: Reading = KEEP, key: bytes | None = None) -> list[Slice | Reject]:
    """Read a file: return a slice or a reject for each frame, or one reject."""
    return list(read_slices(data, reading, key))


def read_one(data: bytes, reading: Reading = KEEP) -> Slice:
    """Read a file that must give one slice."""
    (found,) = read(data, reading)
    assert isinstance(found, Slice), found
    return found


def code_of(data: bytes, reading: Reading = KEEP) -> str:
    """Return the code of a file that must be rejected."""
    (found,) = read(data, reading)
    assert isinstance(found, Reject), found.record
    assert found.code in REJECT_CODES
    return found.code


def to_hu(found: Slice) -> np.ndarray:
    """Return the HU of a slice, float64."""
    return found.stored.astype(np.float64) * found.record.slope + found.record.intercept


def files_below(folder: Path) -> list[Path]:
    """Return the files of a folder of real data, without its README and LICENSE."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in ("LICENSE", "README.md"))
