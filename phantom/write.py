"""Encode CT slices as DICOM files with the attributes of RSNA 2019."""

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from pydicom import config, dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian

IMPLEMENTATION_UID = "1.2.826.0.1.3680043.8.498.1"  # under pydicom's own root


@dataclass(frozen=True, slots=True)
class SliceAttributes:
    """The attributes of a slice.

    Attributes:
        position, orientation: ImagePositionPatient (mm) and ImageOrientationPatient.
        spacing_mm: between rows, and between columns.
        bits_stored, intercept: of the coding; HU = stored + intercept.
        windows: one or more (centre, width), as text because RSNA 2019 has "00036".
        implicit_vr: whether to write Implicit instead of Explicit VR Little Endian.
    """

    sop_instance_uid: str
    patient_id: str
    study_instance_uid: str
    series_instance_uid: str
    position: tuple[float, float, float]
    orientation: tuple[float, float, float, float, float, float]
    spacing_mm: tuple[float, float]
    bits_stored: int
    intercept: int
    windows: tuple[tuple[str, str], ...]
    implicit_vr: bool


def encode_slice(stored: np.ndarray, attributes: SliceAttributes) -> bytes:
    """Encode one slice as a DICOM Part 10 file, uncompressed.

    Args:
        stored: (H, W) uint16 or int16 values; the dtype determines PixelRepresentation.
        attributes: of the slice.

    Source: DICOM PS3.10 section 7 (file format), PS3.3 C.7.6.3 (image pixel), C.11.1 (rescale). The set of attributes,
        and UIDs of "ID_" and hex digits, are those of the RSNA 2019 files, which are not valid DICOM.
    """
    uid, position = attributes.sop_instance_uid, [f"{value:.6f}" for value in attributes.position]
    blank_uid, blank_position = "X" * len(uid), tuple("1" * len(text) for text in position)
    common = replace(attributes, sop_instance_uid=blank_uid, position=(0.0, 0.0, 0.0))
    header = _header(common, blank_position, stored.shape, stored.dtype.kind)
    header = header.replace(blank_uid.encode(), uid.encode())
    header = header.replace("\\".join(blank_position).encode(), "\\".join(position).encode(), 1)
    return header + np.ascontiguousarray(stored, stored.dtype.newbyteorder("<")).tobytes()


@lru_cache(maxsize=64)
def _header(attributes: SliceAttributes, position: tuple[str, ...], shape: tuple[int, ...], kind: str) -> bytes:
    """Return all bytes before the pixels, which come last.

    The slices of a study only differ in UID and position. As pydicom takes a millisecond to write a header, it is
    written once for each length of these two values.
    """
    dataset = _dataset(attributes, position)
    dataset.Rows, dataset.Columns = shape
    dataset.BitsAllocated, dataset.BitsStored = 16, attributes.bits_stored
    dataset.HighBit = attributes.bits_stored - 1
    dataset.PixelRepresentation = int(kind == "i")
    dataset.PixelData = bytes(2 * math.prod(shape))
    file = io.BytesIO()
    with _unchecked_uids():
        dcmwrite(file, dataset, enforce_file_format=True)
    return file.getvalue()[: -len(dataset.PixelData)]


def _dataset(attributes: SliceAttributes, position: tuple[str, ...]) -> Dataset:
    """Return the data set without pixels."""
    with _unchecked_uids():
        dataset = Dataset()
        dataset.file_meta = _file_meta(attributes)
        dataset.SOPInstanceUID = attributes.sop_instance_uid
        dataset.Modality = "CT"
        dataset.PatientID = attributes.patient_id
        dataset.StudyInstanceUID = attributes.study_instance_uid
        dataset.SeriesInstanceUID = attributes.series_instance_uid
        dataset.StudyID = ""
        dataset.ImagePositionPatient = list(position)
        dataset.ImageOrientationPatient = [f"{value:.6f}" for value in attributes.orientation]
        dataset.SamplesPerPixel = 1
        dataset.PhotometricInterpretation = "MONOCHROME2"
        dataset.PixelSpacing = [f"{value:.6f}" for value in attributes.spacing_mm]
        centres, widths = zip(*attributes.windows, strict=True)
        dataset.WindowCenter, dataset.WindowWidth = list(centres), list(widths)
        dataset.RescaleIntercept, dataset.RescaleSlope = str(attributes.intercept), "1"
    return dataset


def _file_meta(attributes: SliceAttributes) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = UID(attributes.sop_instance_uid)
    meta.TransferSyntaxUID = ImplicitVRLittleEndian if attributes.implicit_vr else ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(IMPLEMENTATION_UID)
    return meta


@contextmanager
def _unchecked_uids() -> Iterator[None]:
    """Prevent pydicom from warning about UIDs like "ID_..."."""
    settings = config.settings
    reading, writing = settings.reading_validation_mode, settings.writing_validation_mode
    settings.reading_validation_mode = settings.writing_validation_mode = config.IGNORE
    try:
        yield
    finally:
        settings.reading_validation_mode, settings.writing_validation_mode = reading, writing
