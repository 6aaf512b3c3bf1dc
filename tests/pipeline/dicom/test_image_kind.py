"""Perfusion, material and projection images are recognised by ImageType, stored as such, and counted in the report."""

import json
import re
import zlib
from pathlib import Path

import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from pipeline.cache.files import canonical, read_checked, with_checksum
from pipeline.planning import stages
from testkit.dicom_files import ct_file, enhanced_file, frame_groups, gradient, read, read_one
from testkit.small import Small, counted, run, write, write_slices


@pytest.mark.parametrize(
    ("image_type", "kind"),
    [
        ("ORIGINAL\\PRIMARY\\AXIAL", ""),
        ("ORIGINAL\\PRIMARY\\AXIAL\\CT_SOM5 SEQ", ""),
        ("ORIGINAL\\PRIMARY\\AXIAL\\HELIX", ""),
        ("DERIVED\\SECONDARY\\REFORMATTED\\AVERAGE", ""),
        ("DERIVED\\SECONDARY\\MPR", ""),
        ("DERIVED\\PRIMARY\\AXIAL\\VMI", ""),
        ("DERIVED\\SECONDARY\\AXIAL\\OMIPAQUE\\CBFX", ""),
        ("", ""),
        (None, ""),
        ("DERIVED\\SECONDARY\\PERFUSION\\RCBF", "perfusion"),
        ("DERIVED\\PRIMARY\\AXIAL\\CT_SOM5 SPI\\CBV", "perfusion"),
        ("DERIVED\\SECONDARY\\AXIAL\\CTP", "perfusion"),
        ("derived\\secondary\\ mtt ", "perfusion"),
        ("DERIVED\\SECONDARY\\OTHER\\TTP", "perfusion"),
        ("DERIVED\\SECONDARY\\TMAX MAP", "perfusion"),
        ("DERIVED\\SECONDARY\\CBF_MIP", "perfusion"),
        ("DERIVED\\SECONDARY\\BLOOD_VOLUME", "perfusion"),
        ("DERIVED\\SECONDARY\\AXIAL\\IODINE_NO_WATER", "material"),
        ("DERIVED\\SECONDARY\\AXIAL\\VIRTUAL_NON_CONTRAST", "material"),
        ("DERIVED\\SECONDARY\\AXIAL\\DE_VNC", "material"),
        ("DERIVED\\PRIMARY\\AXIAL\\MAT_SPECIFIC", "material"),
        ("DERIVED\\SECONDARY\\MIP", "projection"),
        ("DERIVED\\SECONDARY\\MPR\\CSA MIP", "projection"),
        ("DERIVED\\PRIMARY\\VOLUME\\MAXIMUM", "projection"),
        ("DERIVED\\SECONDARY\\PROJECTION IMAGE", "projection"),
        ("DERIVED\\SECONDARY\\REFORMATTED\\MinIP", "projection"),
    ],
)
def test_the_kind_is_determined_by_whole_words_of_image_type(image_type: str | None, kind: str) -> None:
    values = image_type.split("\\") if image_type else image_type
    assert read_one(ct_file(gradient(), ImageType=values)).record.image_kind == kind


def test_frame_type_overrides_image_type() -> None:
    groups = [frame_groups(2.5 * number, 1, -1024) for number in range(3)]
    for group, contrast in zip(groups, ("RCBF", "NONE"), strict=False):
        frame_type = Dataset()
        frame_type.FrameType = ["DERIVED", "PRIMARY", "VOLUME", contrast]
        group.CTImageFrameTypeSequence = Sequence([frame_type])
    data = enhanced_file(gradient()[None].repeat(3, 0), groups, ImageType=["DERIVED", "PRIMARY", "VOLUME", "MAXIMUM"])
    assert [found.record.image_kind for found in read(data)] == ["perfusion", "", "projection"]


def special_slices(small: Small) -> dict[str, str]:
    """Return the report's table of special slices: description -> number of slices."""
    out = small.folder / "report.html"
    run("report", small.out, "--out", out)
    words = out.read_text("utf-8").partition("Special slices")[2].partition("</table>")[0]
    return dict(re.findall(r"<tr><td>([^<]+)</td><td>(\d+)</td>", words))


def test_the_report_counts_slices_by_kind(tmp_path: Path) -> None:
    small = Small(tmp_path)
    types = ["RCBF", "MTT", "AXIAL", "IODINE", "MIP", "CTP"]
    for number, word in enumerate(types):
        place = {"SOPInstanceUID": f"1.2.{number}", "ImagePositionPatient": [0, 0, number]}
        write(small.src / str(number), ct_file(gradient(), ImageType=["DERIVED", "SECONDARY", word], **place))
    small.build()
    found = special_slices(small)
    assert [number for words, number in found.items() if "according to ImageType" in words] == ["3", "1", "1"]
    assert not any("before the kind" in words for words in found)


def test_files_of_a_cache_without_kinds_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = Small(tmp_path)
    write_slices(small.src, range(3))
    with monkeypatch.context() as then:
        then.setattr(stages, "READ_VERSION", 2)
        small.build()
    for file in (small.out / ".pipeline" / "shards").glob("*.json"):
        record = json.loads(read_checked(file))
        del record["slices"]["image_kind"]
        file.write_bytes(with_checksum(canonical(record)))
        copy = small.out / ".pipeline" / "records" / f"{file.stem}.z"
        copy.write_bytes(with_checksum(zlib.compress(canonical(record))))
    small.verify()
    assert {number for words, number in special_slices(small).items() if "before the kind" in words} == {"3"}
    small.plan()
    with counted() as work:
        small.build()
    assert (len(work.read), work.rendered) == (3, 3)
    small.verify()
    assert not any("kind" in words for words in special_slices(small))
