"""Builds from files to a cache: pixels are compared with Pillow, tables with the files; mistakes are one line."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
import zarr
from click.testing import CliRunner, Result
from PIL import Image

from phantom import dataset as phantom
from pipeline.cli import main as cli
from pipeline.cli.main import main
from pipeline.dicom.rejects import Rejected
from testkit.small import Small, slice_bytes, write, write_slices

WINDOWS = ((40, 80), (50, 130), (600, 2800))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


def build(src: Path, out: Path, *more: object) -> Result:
    return run("build", "--src", src, "--out", out, "--workers", 0, *more)


def reference(file: Path, size_px: int) -> np.ndarray:
    """Return the expected image, computed with pydicom, float64 and Pillow: (3, S, S) uint8."""
    dataset = pydicom.dcmread(file)
    hu = dataset.pixel_array * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
    channels = []
    for level_hu, width_hu in WINDOWS:
        grey = np.clip((hu - (level_hu - width_hu / 2)) / width_hu, 0, 1)
        picture = Image.fromarray(np.floor(255 * grey + 0.5).astype(np.uint8))
        channels.append(np.asarray(picture.resize((size_px, size_px), Image.Resampling.BILINEAR)))
    return np.stack(channels)


def check_pixels(cache: Path, files: dict[str, Path]) -> None:
    """Check that every image of every size is within 1 grey level of the reference, and that its sums are exact."""
    group = zarr.open_group(cache, mode="r")
    table = pd.read_csv(cache / "metadata.csv")
    assert len(table) == len(files)
    for size, path in group.attrs["sizes"].items():
        for row, uid in zip(table["row"], table["sop_instance_uid"], strict=True):
            image = group[path][row]
            difference = image.astype(int) - reference(files[uid], int(size))
            assert np.abs(difference).max() <= 1, (uid, size)
            wide = image.astype(np.uint64)
            sums = np.stack([wide.sum((1, 2)), (wide**2).sum((1, 2))], 1)
            np.testing.assert_array_equal(group[group.attrs["sums"][size]][row], sums)


@pytest.fixture(scope="module")
def studies(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("phantom")
    phantom.write(folder, patients=2, seed=3)
    return folder


@pytest.fixture(scope="module")
def cache(studies, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("cache") / "cache.zarr"
    done = build(studies / "dicoms", out, "--dataset", "phantom", "--labels", studies / "labels.csv", "--size", 48)
    assert done.exit_code == 0, done.output
    return out


def test_a_real_series_gives_28_slices_in_order_with_the_pixels_of_pillow(test_data, tmp_path):
    out = tmp_path / "cache.zarr"
    done = build(test_data / "head_ct_tilted", out, "--size", 224, "--size", 380)
    assert done.exit_code == 0, done.output
    table = pd.read_csv(out / "metadata.csv")
    assert len(table) == 28
    assert table["z_norm"].is_monotonic_increasing
    assert (table["z_norm"].iloc[0], table["z_norm"].iloc[-1]) == (0, 1)
    headers = {file: pydicom.dcmread(file) for file in (test_data / "head_ct_tilted").glob("*.dcm")}
    check_pixels(out, {header.SOPInstanceUID: file for file, header in headers.items()})
    assert list(table.columns)[-1] == "z_norm", "no labels, no class columns"
    patients = {str(header.PatientID) for header in headers.values()}
    assert not set(table["patient_id"]) & patients, "the patient's own id must not be in the cache"


def test_phantom_pixels_rows_and_labels(studies, cache):
    check_pixels(cache, {file.stem: file for file in (studies / "dicoms").glob("*.dcm")})
    table = pd.read_csv(cache / "metadata.csv").set_index("image_id")
    labels = pd.read_csv(studies / "labels.csv")
    labels[["image", "klass"]] = labels["ID"].str.rsplit("_", n=1, expand=True).to_numpy()
    expected = labels.pivot(index="image", columns="klass", values="Label")
    for klass in expected.columns:
        assert (table[klass] == expected[klass].reindex(table.index)).all(), klass


def test_the_table_has_the_columns_and_order_of_the_format(cache):
    table = pd.read_csv(cache / "metadata.csv")
    fixed = "row,image_id,sop_instance_uid,patient_id,study_instance_uid,series_instance_uid,frame,z_mm,z_norm"
    classes = "epidural,intraparenchymal,intraventricular,subarachnoid,subdural,any"
    assert list(table.columns) == f"{fixed},{classes}".split(",")
    order = ["patient_id", "study_instance_uid", "series_instance_uid", "z_mm", "sop_instance_uid", "frame"]
    pd.testing.assert_frame_equal(table, table.sort_values(order, ignore_index=True))
    assert table["row"].is_unique
    for _, series in table.groupby("series_instance_uid"):
        assert (series["z_norm"].min(), series["z_norm"].max()) == (0, 1)
        low, high = series["z_mm"].min(), series["z_mm"].max()
        np.testing.assert_allclose(series["z_norm"], (series["z_mm"] - low) / (high - low), rtol=0, atol=1e-12)


def test_rows_are_mixed_over_patients(cache):
    table = pd.read_csv(cache / "metadata.csv").sort_values("row")
    changes = (table["patient_id"].to_numpy()[1:] != table["patient_id"].to_numpy()[:-1]).mean()
    assert changes > 0.3


def test_the_root_is_the_commit_and_everything_is_checksummed(cache):
    root = json.loads((cache / "zarr.json").read_text())
    attributes = root["attributes"]
    kept = json.loads((cache / "commits" / f"{attributes['commit']}.json").read_text())
    assert kept["attributes"] == attributes
    table = cache / attributes["metadata"]["file"]
    assert table.read_bytes() == (cache / "metadata.csv").read_bytes()
    assert attributes["counts"]["files"] == attributes["counts"]["gave_slices"] == attributes["num_slices"]
    array = zarr.open_group(cache, mode="r")[attributes["sizes"]["48"]]
    assert array.shards == (attributes["rows_per_shard"], 3, 48, 48)
    assert array.chunks == (1, 3, 48, 48)


def test_local_workers_and_a_plain_loop_build_the_same_cache(studies, cache, tmp_path):
    out = tmp_path / "cache.zarr"
    options = ("--dataset", "phantom", "--labels", studies / "labels.csv", "--size", 48)
    done = run("build", "--src", studies / "dicoms", "--out", out, "--workers", 2, *options)
    assert done.exit_code == 0, done.output
    for file in cache.rglob("*"):
        if (
            file.is_file()
            and ".pipeline" not in file.parts
            and file.name != "zarr.json"
            and "commits" not in file.parts
        ):
            assert file.read_bytes() == (out / file.relative_to(cache)).read_bytes(), file


@pytest.mark.parametrize("compression", ["lz4hc", "zstd"])
def test_other_compressors_store_the_same_pixels(studies, cache, tmp_path, compression):
    shipped = Path(cli.__file__).parents[1].joinpath("data_catalog.yaml").read_text()
    catalog = tmp_path / "catalog.yaml"
    catalog.write_text(shipped.replace("compression: lz4 ", f"compression: {compression} "))
    out = tmp_path / "cache.zarr"
    options = ("--dataset", "phantom", "--labels", studies / "labels.csv", "--size", 48, "--catalog", catalog)
    assert build(studies / "dicoms", out, *options).exit_code == 0
    ours, theirs = zarr.open_group(out, mode="r"), zarr.open_group(cache, mode="r")
    path = ours.attrs["sizes"]["48"]
    assert compression in json.dumps(json.loads((out / path / "zarr.json").read_text()))
    np.testing.assert_array_equal(ours[path][:308], theirs[theirs.attrs["sizes"]["48"]][:308])


def test_one_of_several_duplicates_is_kept_and_none_of_several_conflicting_files(studies, tmp_path):
    src = tmp_path / "dicoms"
    src.mkdir()
    first, second, third, *_ = sorted((studies / "dicoms").iterdir())
    shutil.copy(first, src / "b.dcm")
    shutil.copy(first, src / "a.dcm")
    shutil.copy(third, src / "c.dcm")
    shutil.copy(second, src / "d.dcm")
    content = bytearray(second.read_bytes())
    content[-1000] ^= 1
    (src / "e.dcm").write_bytes(content)
    done = build(src, tmp_path / "cache.zarr", "--size", 16)
    assert done.exit_code == 1
    rejects = pd.read_csv(tmp_path / "cache.zarr" / "rejects.csv")
    assert rejects[["path", "code"]].to_numpy().tolist() == [
        ["b.dcm", "duplicate"],
        ["d.dcm", "duplicate_conflict"],
        ["e.dcm", "duplicate_conflict"],
    ]
    assert "e.dcm" in rejects["message"][1]
    assert "d.dcm" in rejects["message"][2]
    counts = json.loads((tmp_path / "cache.zarr" / "zarr.json").read_text())["attributes"]["counts"]
    assert counts == {
        "files": 5,
        "gave_slices": 2,
        "duplicates": 1,
        "not_a_slice": 0,
        "failed": 2,
        "not_dicom": 0,
    }


def test_rejected_files_are_tried_again_on_request(studies, tmp_path, monkeypatch):
    src, out = tmp_path / "dicoms", tmp_path / "cache.zarr"
    src.mkdir()
    for number, file in enumerate(sorted((studies / "dicoms").iterdir())[:3]):
        shutil.copy(file, src / f"{number}.dcm")
    (src / "note.txt").write_text("no DICOM")

    def decoder_missing(header, *rest):
        raise Rejected("missing_decoder", "pip install")

    assert build(src, out, "--size", 8).exit_code == 0
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.dicom.read.read_header", decoder_missing)
        shutil.copy(sorted((studies / "dicoms").iterdir())[3], src / "3.dcm")
        assert build(src, out, "--size", 8).exit_code == 1
    assert "nothing to do" in build(src, out, "--size", 8).stderr
    planned = run("plan", "--json", "--retry-rejected", "--src", src, "--out", out, "--size", 8)
    assert [task["files"] for task in json.loads(planned.stdout)["tasks"]] == [["3.dcm"]]
    done = build(src, out, "--size", 8, "--retry-rejected")
    assert done.exit_code == 0
    assert "1 rejected file is tried again" in done.stderr
    assert len(pd.read_csv(out / "metadata.csv")) == 4
    assert "it was rejected and is tried again" in run("why", out, "3.dcm").stdout


def test_bad_input_is_one_line_and_leaves_no_cache(studies, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    text = tmp_path / "text"
    text.mkdir()
    (text / "a.txt").write_text("no DICOM")
    labels = tmp_path / "labels.csv"
    labels.write_text("image_id,epidural,intraparenchymal,intraventricular,subarachnoid,subdural,any\nx,0,0,0,0,0,0\n")
    out = tmp_path / "cache.zarr"
    cases = [
        ((tmp_path / "absent",), "absent"),
        ((empty,), "empty"),
        ((text,), "none of its files is a CT slice"),
        ((studies / "dicoms", "--labels", tmp_path / "absent.csv"), "absent.csv: cannot be read"),
        ((studies / "dicoms", "--labels", labels), "none of its 1 images is in the data, x for example"),
        ((studies / "dicoms", "--size", 0), "--size: 0 pixels is not possible"),
        ((studies / "dicoms", "--dataset", "rsnaa"), "did you mean rsna?"),
        ((studies / "dicoms", "--catalog", tmp_path / "absent.yaml"), "cannot be read"),
    ]
    for (src, *more), said in cases:
        done = build(src, out, *more)
        assert done.exit_code == 1, (said, done.output)
        [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert said in line
        assert not (out / "zarr.json").exists()
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    done = build(studies / "dicoms", foreign)
    assert done.exit_code == 1
    assert "holds files that do not belong to a cache" in done.stderr
    assert [path.name for path in foreign.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("limit", "code"), [("0", 1), ("1", 1), ("2", 0), ("19%", 1), ("20%", 0), ("100%", 0), ("few", 2)]
)
def test_the_number_of_failed_files_decides_the_exit_code(tmp_path, limit, code):
    """Two of ten files fail; files that are not slices or not DICOM do not count, and the commit is made anyway."""
    small = Small(tmp_path)
    write_slices(small.src, range(7))
    for name in ("cut1.dcm", "cut2.dcm"):
        write(small.src / name, slice_bytes(20)[:-50])
    write(small.src / "notes.txt", b"not DICOM")
    done = small.build("--max-rejects", limit, code=code)
    assert ("failed files: 2, more than --max-rejects" in done.stderr) == (code == 1)
    assert (small.out / "metadata.csv").exists() == (code != 2)
