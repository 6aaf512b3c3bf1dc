"""Stored outputs of reading and of the table for fixed inputs, by version; those of rendering are in test_kernel.py.

If a value changes on purpose, increment the version in pipeline/planning/stages.py, so that caches are updated, and
store the new outputs under it.
"""

import dataclasses
import io

import imagecodecs
import numpy as np
import xxhash
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
)

from pipeline.dicom.read import read_slices
from pipeline.dicom.records import Reject, Slice
from pipeline.planning import stages
from pipeline.planning.catalog import LabelFile, Reading
from pipeline.tables.labels import read_labels
from testkit.dicom_files import AXIAL, KEEP, ct_dataset, ct_file, encode, enhanced_file, frame_groups, gradient
from testkit.small import Small, write

REPAIR = dataclasses.replace(KEEP, repair="rsna_12bit_wrap")
HASH = dataclasses.replace(KEEP, patient_ids="hash")
WRAPPED = np.where(np.arange(120) % 7, 40, 3080).reshape(12, 10).astype(np.uint16)


def signed_groups() -> list:
    return [frame_groups(2.5 * number, 1 + number / 2, -1024) for number in range(2)]


def coded_without_a_sign() -> bytes:
    values = gradient(32, 32) - 2000
    dataset = ct_dataset(values)
    code = imagecodecs.jpeg2k_encode(
        values.view(np.uint16) & 0x1FFF, codecformat="j2k", reversible=True, bitspersample=13
    )
    dataset.PixelData = encapsulate([bytes(code)])
    return encode(dataset, JPEG2000Lossless)


READ_INPUTS: dict[str, tuple[bytes, Reading]] = {
    "16 bits, signed": (ct_file(gradient(), RescaleSlope="0.7"), KEEP),
    "12 bits, junk above": (ct_file(gradient(dtype="uint16") | 0xA000, BitsStored=12), KEEP),
    "8 bits": (ct_file(gradient(dtype="uint8")), KEEP),
    "implicit": (ct_file(gradient(), ImplicitVRLittleEndian), KEEP),
    "big endian": (ct_file(gradient().byteswap(), ExplicitVRBigEndian), KEEP),
    "deflated": (ct_file(gradient(), DeflatedExplicitVRLittleEndian), KEEP),
    "hashed patient": (ct_file(gradient()), HASH),
    "no patient": (ct_file(gradient(), PatientID=None), HASH),
    "no position": (ct_file(gradient(), ImagePositionPatient=None), KEEP),
    "wrapped": (ct_file(WRAPPED, BitsStored=12, RescaleIntercept=0), REPAIR),
    "frames": (enhanced_file(np.stack([gradient(), gradient() + 9]), signed_groups()), KEEP),
    "32 bits": (ct_file(gradient().astype("int32")), KEEP),
    "coded without a sign": (coded_without_a_sign(), KEEP),
    "units in words": (ct_file(gradient(), RescaleType="Hounsfield units"), KEEP),
    "longer than the file": (ct_file(gradient())[:-2], KEEP),
    "rejected": (ct_file(gradient(), RescaleType="US"), KEEP),
    "localizer": (ct_file(gradient(), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), KEEP),
    "perfusion": (ct_file(gradient(), ImageType=["DERIVED", "SECONDARY", "RCBF"]), KEEP),
}
STORED_READ = {
    3: {
        "16 bits, signed": "81cd54f82b2ec6cc",
        "12 bits, junk above": "238944b141afafdf",
        "8 bits": "5fc662102961a158",
        "implicit": "2177941ef5670e1a",
        "big endian": "c378ed1e56eae18b",
        "deflated": "4d001cfc6c8275bb",
        "hashed patient": "29ecf04000c2fffb",
        "no patient": "6adc0ca64c91f70e",
        "no position": "7c999c5e5b6a09a6",
        "wrapped": "20858fc0ab4ef76e",
        "frames": "aaeb3d8a502fe357",
        "32 bits": "4386ae9f8fa1e694",
        "coded without a sign": "4be75b33b185afeb",
        "units in words": "4386ae9f8fa1e694",
        "longer than the file": "562283305c7aa1ec",
        "rejected": "aac4ba5299c1497f",
        "localizer": "ee845b2528e0e1aa",
        "perfusion": "365510c0461bee9a",
    }
}


def digest_of(data: bytes, reading: Reading) -> str:
    found: list[object] = []
    for item in read_slices(data, reading, b"key"):
        if isinstance(item, Slice):
            found += [tuple(item.record), item.stored.dtype.str, item.stored.tolist(), item.padding]
        else:
            assert isinstance(item, Reject)
            found += [item.code, item.frame]
    return xxhash.xxh3_64_hexdigest(repr(found).encode())


def test_reading_gives_the_stored_output_of_its_version():
    assert {name: digest_of(*case) for name, case in READ_INPUTS.items()} == STORED_READ[stages.READ_VERSION]


STORED_TABLE = {
    (3, 2): """
image_id,sop_instance_uid,patient_id,study_instance_uid,series_instance_uid,frame,z_mm,z_norm,bleed,any
1.2.0.0,1.2.0.0,P1,1.2.3,1.3.0,0,-7.4,0.0,0,0
1.2.0.1,1.2.0.1,P1,1.2.3,1.3.0,0,0.0,0.3794871794871795,1,1
1.2.0.2,1.2.0.2,P1,1.2.3,1.3.0,0,4.2,0.594871794871795,0,0
1.2.0.3,1.2.0.3,P1,1.2.3,1.3.0,0,12.1,1.0,,
1.2.1.0,1.2.1.0,P1,1.2.3,1.3.1,0,-44.42783772944476,0.0,0,0
1.2.1.1,1.2.1.1,P1,1.2.3,1.3.1,0,-35.06218721287218,0.37948717948717947,1,1
1.2.1.2,1.2.1.2,P1,1.2.3,1.3.1,0,-29.746547730493145,0.5948717948717951,0,0
1.2.1.3,1.2.1.3,P1,1.2.3,1.3.1,0,-19.74808298982783,1.0,,
1.2.2.0,1.2.2.0,P1,1.2.3,1.3.2,0,-3.7,0.0,0,0
1.2.2.1,1.2.2.1,P1,1.2.3,1.3.2,0,0.0,0.3794871794871795,1,1
1.2.2.2,1.2.2.2,P1,1.2.3,1.3.2,0,2.1,0.594871794871795,0,0
1.2.2.3,1.2.2.3,P1,1.2.3,1.3.2,0,6.05,1.0,,
1.2.3.0,1.2.3.0,P1,1.2.3,1.3.3,0,-7.4,0.0,0,0
1.2.3.1,1.2.3.1,P1,1.2.3,1.3.3,0,0.0,0.3794871794871795,1,1
1.2.3.2,1.2.3.2,P1,1.2.3,1.3.3,0,4.2,0.594871794871795,0,0
1.2.3.3,1.2.3.3,P1,1.2.3,1.3.3,0,12.1,1.0,,
"""
}
STORED_REJECTS = {
    3: [
        ["path", "code"],
        ["again.dcm", "duplicate"],
        ["p.dcm", "duplicate_conflict"],
        ["q.dcm", "duplicate_conflict"],
    ]
}


def test_the_table_is_the_stored_output_of_its_versions(tmp_path):
    labels = {f"1.2.{series}.{number}": number % 2 for series in range(4) for number in range(3)}
    small = Small(tmp_path, labels=labels)
    tilted = [1, 0, 0, 0, 0.948324, -0.317305]
    for series, changes in enumerate(
        ({}, {"ImageOrientationPatient": tilted}, {"ImagePositionPatient": None}, {"ImageOrientationPatient": None})
    ):
        for number, z in enumerate((-7.4, 0, 4.2, 12.1)):
            uids = {"SOPInstanceUID": f"1.2.{series}.{number}", "SeriesInstanceUID": f"1.3.{series}"}
            place = {"ImagePositionPatient": [-120, -110.5 + z, z], "ImageOrientationPatient": AXIAL}
            place |= {"SliceLocation": z / 2 if series == 2 else None, "InstanceNumber": 9 - number}
            write(small.src / f"{series}{number}.dcm", ct_file(gradient(), **uids, **(place | changes)))
    write(small.src / "again.dcm", (small.src / "00.dcm").read_bytes())
    for patient in ("p", "q"):
        uids = {"SOPInstanceUID": "1.2.9.0", "SeriesInstanceUID": "1.3.9", "PatientID": patient}
        write(small.src / f"{patient}.dcm", ct_file(gradient(), ImageOrientationPatient=AXIAL, **uids))
    small.build("--max-rejects", 2)
    table = [line.partition(",")[2] for line in (small.out / "metadata.csv").read_text().splitlines()]
    assert table == STORED_TABLE[stages.SERIES_VERSION, stages.LABELS_VERSION].split()
    rejects = [line.split(",")[:2] for line in (small.out / "rejects.csv").read_text().splitlines()]
    assert rejects == STORED_REJECTS[stages.SERIES_VERSION]


STORED_LABELS = {2: "image_id,epidural,subdural,any\nID_a,0.0,1.0,1.0\nID_b,,,0.0\n"}


def test_labels_are_the_stored_output_of_their_version():
    classes = ["epidural", "subdural", "any"]
    long = "ID,Label\nID_a_any,1\nID_a_any,1\nID_a_epidural,0\nID_a_subdural,1\nID_b_any,0\n"
    wide = "any,image_id,subdural,epidural\n1,ID_a,1,0\n0,ID_b,,\n"
    for kind, content in (("rsna_long", long), ("wide", wide)):
        found = read_labels(LabelFile(kind, "labels.csv"), content.encode(), classes)
        file = io.StringIO()
        found.to_csv(file)
        assert file.getvalue() == STORED_LABELS[stages.LABELS_VERSION]
