"""Turn the bytes of a DICOM file into CT slices, or into the reason why they are none."""

from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.dicom.facts import read_file_facts
from pipeline.dicom.frames import read_frames
from pipeline.dicom.header import read_header
from pipeline.dicom.records import Reject, Slice
from pipeline.dicom.rejects import Rejected
from pipeline.planning.catalog import Reading


@dataclass(frozen=True, slots=True)
class Slices:
    """The frames of one file; iterating decodes them one after another, once.

    Attributes:
        num_frames: of the whole file, as its header states; 1 where the file gives no slice.
        items: a Slice or a Reject for each frame that was asked for, or a single Reject for the whole file.
    """

    num_frames: int
    items: Iterator[Slice | Reject]

    def __iter__(self) -> Iterator[Slice | Reject]:
        return self.items


def read_slices(
    data: memoryview | bytes,
    reading: Reading,
    patient_key: bytes | None,
    frames: tuple[int, int] | None = None,
) -> Slices:
    """Read a DICOM file's header now, and each frame when the result is iterated.

    Stored values of an uncompressed file are a view of `data`, which must not change while they are used.
    HU = stored x slope + intercept is never rounded on the way.

    Args:
        data: the whole file.
        reading: the catalog's policies.
        patient_key: up to 64 bytes that key the hash of PatientID; None where the catalog keeps PatientID.
        frames: the part to read, (first, stop) counted from 0; None for all.
    """
    try:
        header = read_header(memoryview(data))
        facts = read_file_facts(header)
    except Rejected as reason:
        return Slices(1, iter((Reject(reason.code, reason.message),)))
    first, stop = frames or (0, facts.num_frames)
    wanted = range(first, min(stop, facts.num_frames))
    return Slices(facts.num_frames, read_frames(header, facts, reading, patient_key, wanted))
