"""Turn the bytes of a DICOM file into CT slices, or into rejects."""

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
    """The frames of one file. It can be iterated once, which decodes them one by one.

    Attributes:
        num_frames: number of frames in the file according to its header; 1 if the whole file is rejected.
        items: a Slice or a Reject for each requested frame, or a single Reject for the whole file.
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
    """Read the header of a DICOM file; each frame is read when the result is iterated.

    Stored values of an uncompressed file may be a view of `data`, which must not change while they are used.

    Args:
        data: the complete file.
        reading: the catalog's policies.
        patient_key: key for hashing PatientID, up to 64 bytes; None if the catalog keeps PatientID.
        frames: (first, stop) of the frames to read, counted from 0; None for all.
    """
    try:
        header = read_header(memoryview(data))
        facts = read_file_facts(header)
    except Rejected as reason:
        return Slices(1, iter((Reject(reason.code, reason.message),)))
    first, stop = frames or (0, facts.num_frames)
    wanted = range(first, min(stop, facts.num_frames))
    return Slices(facts.num_frames, read_frames(header, facts, reading, patient_key, wanted))
