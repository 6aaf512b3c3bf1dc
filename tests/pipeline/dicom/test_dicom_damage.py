"""Damaged files and decompression bombs are rejected within limits of time and memory."""

import os
import subprocess
import sys
import time
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian, RLELossless

from pipeline.dicom import header
from pipeline.dicom.records import Reject
from testkit.dicom_files import code_of, ct_dataset, ct_file, deflate, encode, gradient, read, read_one


def test_missing_and_truncated_pixels() -> None:
    dataset = ct_dataset(gradient())
    data = encode(dataset)
    assert code_of(data[:-50]) == "truncated"
    del dataset.PixelData
    assert code_of(encode(dataset)) == "no_pixels"


def test_a_deflated_bomb_is_rejected_before_memory_is_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = ct_file(gradient())
    begin = plain.index(b"\x08\0\x16\0")
    head = encode(ct_dataset(gradient()), DeflatedExplicitVRLittleEndian)
    head = head[: head.index(b"1.2.840.10008.1.2.1.99") + 22]
    good = head + deflate(plain[begin:])
    np.testing.assert_array_equal(read_one(good).stored, gradient())
    assert code_of(head + deflate(plain[begin:] + bytes(40 << 20))) == "too_large"
    monkeypatch.setattr(header, "RATIO_MATTERS_BYTES", 64)  # so that it counts as large and is inflated twice
    np.testing.assert_array_equal(read_one(good).stored, gradient())


def test_bombs_take_little_memory_and_time() -> None:
    """0.4 MB that inflate to 0.4 GB, and 8 KB of RLE whose header states 1.8 GB."""
    head = encode(ct_dataset(gradient()), DeflatedExplicitVRLittleEndian)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    zeros = b"".join(packer.compress(bytes(1 << 20)) for _ in range(400)) + packer.flush()
    dataset = ct_dataset(gradient(), Rows=4096, Columns=4096, NumberOfFrames=54)
    dataset.PixelData = pydicom.encaps.encapsulate(
        [np.array([2, 64, 64] + [0] * 13, "<u4").tobytes() + b"\x81\0" * 40] * 54
    )
    tracemalloc.start()
    for data in (head[: head.index(b"1.2.840.10008.1.2.1.99") + 22] + zeros, encode(dataset, RLELossless)):
        started = time.process_time()
        tracemalloc.reset_peak()
        assert {found.code for found in read(data)} <= {"too_large", "truncated"}
        assert time.process_time() - started < 5
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()


def test_an_rle_bomb_is_rejected_before_decoding() -> None:
    dataset = ct_dataset(gradient(), Rows=4096, Columns=4096)
    code = np.array([2, 64, 64] + [0] * 13, "<u4").tobytes() + b"\x81\0" * 100
    dataset.PixelData = pydicom.encaps.encapsulate([code])
    assert code_of(encode(dataset, RLELossless)) == "truncated"


def test_deep_nesting_gives_a_reject() -> None:
    item = b"\x08\0\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff"
    data = ct_file(gradient())
    at = data.index(b"\x08\0\x60\0CS")
    assert isinstance(read(data[:at] + item * 20_000 + data[at:])[0], Reject)


def test_damaged_files_give_a_slice_or_a_reject_within_limits(test_data: Path) -> None:
    root = Path(__file__).parents[3]
    command = [sys.executable, "benchmarks/fuzz.py", "--mutants", "300", "--seed", "1"]
    environment = os.environ | {"ICH_TEST_DATA": str(test_data.resolve()), "PYTHONPATH": str(root)}
    campaign = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=300)
    assert campaign.returncode == 0, campaign.stdout + campaign.stderr
    assert "failures: 0" in campaign.stdout
