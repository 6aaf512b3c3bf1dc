"""A source with all kinds of series, codings and failures that the report of a cache counts."""

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from testkit import dicom_files
from testkit.small import write

MANUFACTURERS = {"SIEMENS": "Siemens", "GE MEDICAL SYSTEMS": "GE", "markmaker inc": "other"}


IMPLICIT, EXPLICIT, BIG_ENDIAN = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"


def tilted(degrees: float) -> list[float]:
    angle = np.radians(degrees)
    return [1, 0, 0, 0, float(np.round(np.cos(angle), 6)), float(np.round(-np.sin(angle), 6))]


def rotated(degrees: float) -> list[float]:
    angle = np.radians(degrees)
    across, along = float(np.round(np.cos(angle), 6)), float(np.round(np.sin(angle), 6))
    return [across, along, 0, -along, across, 0]


# Series number -> orientation and z of each slice; other differences are in `dataset_of`.
SERIES = {
    0: [(tilted(0), z) for z in (0, 5, 10, 15, 20, 25)],  # even
    1: [(tilted(20), z) for z in (0, 4, 8, 12, 24)],  # uneven, with a gap, tilted
    2: [(tilted(0), z) for z in (0, 5, 5, 10)],  # repeated
    3: [(tilted(0), 0), (tilted(0), 5), (tilted(15), 10)],  # two tilts
    4: [(rotated(30), z) for z in (0, 5, 10)],  # rotated in the plane
    5: [(tilted(0), 7)],  # one position
}


def dataset_of(series: int, number: int, orientation: list[float], z_mm: float, shape: tuple[int, int]) -> Dataset:
    stored = np.random.default_rng([series, number]).integers(0, 2000, shape, np.uint16)
    dataset = dicom_files.ct_dataset(
        stored,
        BitsStored=16 if series == 1 else 12,
        SOPInstanceUID=f"1.2.77.{series}.{number}",
        SeriesInstanceUID=f"1.2.78.{series}",
        StudyInstanceUID=f"1.2.79.{series}",
        PatientID="" if series == 5 else f"MARKID{series // 2}",
        Manufacturer=list(MANUFACTURERS)[series % 3],
        ImagePositionPatient=[-100, -100, z_mm],
        ImageOrientationPatient=orientation,
        RescaleIntercept=-1000 if series == 0 else -1024,
        PatientName="MARKNAME^JOHN",
        InstitutionName="MARKHOSPITAL",
        StudyDescription="MARKSTUDY",
        SeriesDescription="MARKSERIES",
        ManufacturerModelName="MARKMODEL",
        StationName="MARKSTATION",
        ProtocolName="MARKPROTOCOL",
        PatientBirthDate="19610412",
        AccessionNumber="MARKACC",
        LossyImageCompression="01" if (series, number) == (0, 0) else "00",
    )
    return dataset


def write_source(src: Path) -> dict[str, int]:
    """Write slices of all kinds and files that give none; return the labels, which some slices lack."""
    labels = {}
    for series, slices in SERIES.items():
        for number, (orientation, z_mm) in enumerate(slices):
            shape = (20, 14) if series == 4 else (16, 16)
            dataset = dataset_of(series, number, orientation, z_mm, shape)
            coding = (EXPLICIT, IMPLICIT, EXPLICIT, BIG_ENDIAN, EXPLICIT, EXPLICIT)[series]
            write(src / "good" / f"{series}_{number}", encode(dataset, coding))
            if series != 2:
                labels[f"1.2.77.{series}.{number}"] = int((series + number) % 3 == 0)
    for number in range(2):  # without position, so placed by InstanceNumber
        dataset = dataset_of(6, number, tilted(0), 0, (16, 16))
        del dataset.ImagePositionPatient, dataset.ImageOrientationPatient, dataset.SliceLocation
        dataset.InstanceNumber = number + 1
        write(src / "good" / f"6_{number}", encode(dataset, EXPLICIT))
    write(src / "copies" / "0_1", (src / "good" / "0_1").read_bytes())
    intact = (src / "good" / "0_2").read_bytes()
    for name in ("a<b>&amp;.dcm", "b\u202e.dcm", "c.dcm", "d.dcm", "e.dcm"):
        write(src / "cut" / name, intact[:-100])
    write(src / "notes.txt", b"MARKNOTES nothing of DICOM")
    localizer = dataset_of(8, 0, tilted(0), 0, (16, 16))
    localizer.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    write(src / "scout", encode(localizer, EXPLICIT))
    return labels | {"1.2.3.unknown": 1}


def encode(dataset: Dataset, coding: str) -> bytes:
    if coding == BIG_ENDIAN:
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
    return dicom_files.encode(dataset, coding)
