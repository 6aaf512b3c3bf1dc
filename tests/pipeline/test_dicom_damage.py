"""Damaged files and bombs give a reject, within limits of time and memory."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
from pydicom.uid import DeflatedExplicitVRLittleEndian, RLELossless

from pipeline.records import Reject
from tests.pipeline.dicom_files import code_of, ct_dataset, ct_file, deflate, encode, gradient, read, read_one


def test_no_pixels_and_too_few() -> None:
    dataset = ct_dataset(gradient())
    data = encode(dataset)
    assert code_of(data[:-50]) == "truncated"
    del dataset.PixelData
    assert code_of(encode(dataset)) == "no_pixels"


def test_a_deflated_bomb_is_refused_before_it_is_inflated() -> None:
    plain = ct_file(gradient())
    begin = plain.index(b"\x08\0\x16\0")
    head = encode(ct_dataset(gradient()), DeflatedExplicitVRLittleEndian)
    head = head[: head.index(b"1.2.840.10008.1.2.1.99") + 22]
    good = head + deflate(plain[begin:])
    np.testing.assert_array_equal(read_one(good).stored, gradient())
    assert code_of(head + deflate(plain[begin:] + bytes(40 << 20))) == "too_large"


def test_an_rle_bomb_is_refused_before_it_is_decoded() -> None:
    dataset = ct_dataset(gradient(), Rows=4096, Columns=4096)
    code = np.array([2, 64, 64] + [0] * 13, "<u4").tobytes() + b"\x81\0" * 100
    dataset.PixelData = pydicom.encaps.encapsulate([code])
    assert code_of(encode(dataset, RLELossless)) == "truncated"


def test_deep_nesting_is_survived() -> None:
    item = b"\x08\0\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff"
    data = ct_file(gradient())
    at = data.index(b"\x08\0\x60\0CS")
    assert isinstance(read(data[:at] + item * 20_000 + data[at:])[0], Reject)


def test_damaged_files_give_a_slice_or_a_reject_within_limits(test_data: Path) -> None:
    root = Path(__file__).parent.parent.parent
    command = [sys.executable, "benchmarks/fuzz.py", "--mutants", "300", "--seed", "1"]
    environment = os.environ | {"ICH_TEST_DATA": str(test_data.resolve()), "PYTHONPATH": str(root)}
    campaign = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=300)
    assert campaign.returncode == 0, campaign.stdout + campaign.stderr
    assert "failures: 0" in campaign.stdout
