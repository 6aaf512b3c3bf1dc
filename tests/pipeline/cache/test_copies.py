"""Shuffled, renamed, archived or losslessly recompressed files of a series give the same pixels and z."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pandas as pd
import pydicom
import pytest
import zarr
from pydicom.encaps import encapsulate
from pydicom.uid import (
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from testkit.dicom_files import encode
from testkit.small import run, write
from testkit.source_files import write_tar, write_zip

SIZES = (64, 96)
MINUTE_NS = 60 * 10**9
IMPLICIT, EXPLICIT, DEFLATED, BIG_ENDIAN = (f"1.2.840.10008.1.2{end}" for end in ("", ".1", ".1.99", ".2"))


@pytest.fixture(scope="module")
def originals(test_data: Path) -> list[Path]:
    return sorted((test_data / "head_ct_tilted").glob("*.dcm"))


@pytest.fixture(scope="module")
def expected(originals: list[Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return digests(originals[0].parent, tmp_path_factory.mktemp("originals"))


def digests(src: Path, folder: Path) -> tuple[str, str]:
    """Build a cache; return a digest of its z and pixels as any reader sees them, and its own logical digest."""
    out = folder / "cache.zarr"
    run("build", "--src", src, "--out", out, "--workers", 0, "--size", SIZES[0], "--size", SIZES[1])
    group, found = zarr.open_group(out, mode="r"), hashlib.sha256()
    table = pd.read_csv(out / "metadata.csv", dtype={"z_mm": str, "z_norm": str})
    assert len(table) == 28
    arrays = [group[group.attrs["sizes"][str(size)]] for size in SIZES]
    for row, uid, z_mm, z_norm in table.sort_values("sop_instance_uid")[
        ["row", "sop_instance_uid", "z_mm", "z_norm"]
    ].itertuples(index=False):
        found.update(f"{uid} {z_mm} {z_norm}".encode())
        for array in arrays:
            found.update(array[row].tobytes())
    return found.hexdigest(), run("info", out, "--digest").stdout.strip()


# --- names, order and containers -----------------------------------------------------------------------------------


def shuffled(originals: list[Path], src: Path, rng: np.random.Generator) -> Path:
    """Permute the names of the files, and their times in another way."""
    names, times = rng.permutation(len(originals)), rng.permutation(len(originals))
    for path, name, time in zip(originals, names, times, strict=True):
        write(src / f"{name + 1:02d}.dcm", path.read_bytes(), 10**18 + int(time) * MINUTE_NS)
    return src


def renamed(originals: list[Path], src: Path, rng: np.random.Generator) -> Path:
    """Use folders of any depth, and names without order or extension."""
    for path in originals:
        folder = src.joinpath(*rng.choice(["IM", "Série 2", "x.dcm"], rng.integers(3)))
        write(folder / rng.bytes(6).hex(), path.read_bytes())
    return src


def doubled(originals: list[Path], src: Path, rng: np.random.Generator) -> Path:
    """Copy some of the files twice."""
    shutil.copytree(originals[0].parent, src / "all")
    for path in rng.choice(originals, 7, replace=False):
        write(src / "again" / path.name, path.read_bytes())
    return src


def zipped(originals: list[Path], src: Path, rng: np.random.Generator) -> Path:
    return Path(write_zip(src.with_suffix(".zip"), {f"a/{path.name}": path.read_bytes() for path in originals[::-1]}))


def tarred(originals: list[Path], src: Path, rng: np.random.Generator) -> Path:
    return Path(
        write_tar(src.with_suffix(".tar"), {path.stem: path.read_bytes() for path in rng.permutation(originals)})
    )


@pytest.mark.parametrize("copy", [shuffled, renamed, doubled, zipped, tarred])
def test_the_same_files_in_another_place_give_the_same_pixels_and_z(
    copy: Callable[..., Path], originals: list[Path], expected: tuple[str, str], tmp_path: Path
) -> None:
    assert digests(copy(originals, tmp_path / "dicoms", np.random.default_rng(0)), tmp_path) == expected


# --- encodings -----------------------------------------------------------------------------------------------------


def by_pydicom(dataset: pydicom.Dataset, syntax: str) -> bytes:
    """Encode with pydicom: RLE by its own code, JPEG-LS by CharLS, JPEG 2000 by OpenJPEG."""
    dataset.compress(syntax, generate_instance_uid=False)
    return encode(dataset, syntax)


def by_imagecodecs(dataset: pydicom.Dataset, syntax: str) -> bytes:
    """Encode with OpenJPH or libjpeg-turbo, for whose formats pydicom has no encoder."""
    cells = dataset.pixel_array.view(np.uint16)
    code = (
        imagecodecs.htj2k_encode(cells, reversible=True) if syntax == HTJ2KLossless else imagecodecs.ljpeg_encode(cells)
    )
    dataset.PixelData = encapsulate([bytes(code)])
    dataset["PixelData"].VR = "OB"
    return encode(dataset, syntax)


def plainly(dataset: pydicom.Dataset, syntax: str) -> bytes:
    if syntax == BIG_ENDIAN:
        dataset.PixelData = dataset.pixel_array.astype(">i2").tobytes()
    return encode(dataset, syntax)


CODERS: dict[str, Callable[[pydicom.Dataset, str], bytes]] = {
    IMPLICIT: plainly, EXPLICIT: plainly, DEFLATED: plainly, BIG_ENDIAN: plainly,
    RLELossless: by_pydicom, JPEGLSLossless: by_pydicom, JPEG2000Lossless: by_pydicom,
    JPEGLossless: by_imagecodecs, JPEGLosslessSV1: by_imagecodecs, HTJ2KLossless: by_imagecodecs,
}  # fmt: skip


@pytest.mark.parametrize("syntax", CODERS)
def test_the_same_slices_in_another_encoding_give_the_same_pixels_and_z(
    syntax: str, originals: list[Path], expected: tuple[str, str], tmp_path: Path
) -> None:
    for path in originals:
        content = CODERS[syntax](pydicom.dcmread(path), syntax)
        write(tmp_path / "dicoms" / path.name, content)
        assert (
            pydicom.dcmread(tmp_path / "dicoms" / path.name, stop_before_pixels=True).file_meta.TransferSyntaxUID
            == syntax
        )
    assert digests(tmp_path / "dicoms", tmp_path) == expected


def test_a_series_with_a_different_encoding_for_each_slice_gives_the_same_pixels_and_z(
    originals: list[Path], expected: tuple[str, str], tmp_path: Path
) -> None:
    for number, path in enumerate(originals):
        syntax = list(CODERS)[number % len(CODERS)]
        write(tmp_path / "dicoms" / path.name, CODERS[syntax](pydicom.dcmread(path), syntax))
    assert digests(tmp_path / "dicoms", tmp_path) == expected
