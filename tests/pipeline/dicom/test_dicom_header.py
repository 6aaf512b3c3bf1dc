"""The fast header walk and pydicom give the same results, without warnings."""

import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from pipeline.dicom import header as dicom_header
from pipeline.dicom.records import Reject, Slice
from pipeline.dicom.walk import Walk
from testkit.dicom_files import ct_dataset, ct_file, encode, files_below, gradient, read, read_one


def read_with_pydicom(data: bytes) -> list[Slice | Reject]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dicom_header, "walk", lambda *arguments: Walk([], -1, False, -1))
        return read(data)


def assert_same(data: bytes) -> None:
    fast, full = read(data), read_with_pydicom(data)
    assert len(fast) == len(full)
    for one, other in zip(fast, full, strict=True):
        if isinstance(one, Slice):
            assert isinstance(other, Slice)
            assert (one.record, one.padding) == (other.record, other.padding)
            np.testing.assert_array_equal(one.stored, other.stored)
        else:
            assert one == other


def test_walk_and_pydicom_agree_on_real_files(test_data: Path) -> None:
    for path in files_below(test_data):
        assert_same(path.read_bytes())


def test_plain_files_are_read_without_pydicom(test_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicom_header, "read_dataset", None)
    monkeypatch.setattr(dicom_header, "data_element_generator", None)
    data = ct_file(gradient())
    read_one(data[data.index(b"\x08\0\x16\0") :])  # a data set without meta information
    for name in (
        "head_ct_tilted/01.dcm",
        "transfer_syntaxes/CTImage.dcm",
        "transfer_syntaxes/CTImage.dcm_RLELosslessTransferSyntax_1.2.840.10008.1.2.5.dcm",
    ):
        read_one((test_data / name).read_bytes())


TEXT = st.text(st.characters(codec="latin-1", exclude_characters="\\"), max_size=20)
NUMBERS = st.sampled_from(["0", "-1024", "1", "0.7", " 1.0 ", "+3", "1e2", "", "x", "nan", "-2000.5"])


@given(
    implicit=st.booleans(),
    contradictory=st.booleans(),
    texts=st.dictionaries(st.sampled_from(["StudyDescription", "PatientName", "ImageComments", "PatientID"]), TEXT),
    numbers=st.dictionaries(
        st.sampled_from(["RescaleSlope", "RescaleIntercept", "SliceLocation", "InstanceNumber"]), NUMBERS
    ),
    nested=st.integers(0, 3),
    private=st.binary(max_size=40),
)
def test_walk_and_pydicom_agree_on_random_headers(
    implicit: bool, contradictory: bool, texts: dict, numbers: dict, nested: int, private: bytes
) -> None:
    dataset = ct_dataset(gradient())
    dataset.SpecificCharacterSet = "ISO_IR 100"
    for _ in range(nested):
        inner = Dataset()
        inner.ReferencedImageSequence, inner.RescaleSlope = dataset.get("ReferencedImageSequence", []), 5
        dataset.ReferencedImageSequence = Sequence([inner])
    dataset.add_new(0x00090010, "LO", "MARK")
    dataset.add_new(0x00091001, "UN", private)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, value in texts.items():
            dataset[name] = pydicom.DataElement(pydicom.datadict.tag_for_keyword(name), "LO", value)
        for name, value in numbers.items():
            tag = pydicom.datadict.tag_for_keyword(name)
            dataset[name] = pydicom.dataelem.RawDataElement(
                pydicom.tag.Tag(tag), "DS", len(value), value.encode(), 0, False, True
            )
        codings = [encode(dataset, ImplicitVRLittleEndian), encode(dataset, ExplicitVRLittleEndian)]
    data, other = codings if implicit else codings[::-1]
    if contradictory:  # the meta information states another transfer syntax
        first = b"\x08\0\x05\0"
        data = other[: other.index(first)] + data[data.index(first) :]
    assert_same(data)


def test_rsna_identifiers_cause_no_output_and_no_warnings(
    capfd: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> None:
    data = ct_file(gradient(), SOPInstanceUID="ID_1", StudyInstanceUID="ID_2", SeriesInstanceUID="ID_3")
    caplog.clear()  # messages of writing the file
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_one(data)
        read_with_pydicom(data)
    assert capfd.readouterr() == ("", "")
    assert caplog.text == ""
