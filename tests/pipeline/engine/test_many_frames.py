"""Multi-frame files: a frame that fails, and files with more frames than a shard has rows."""

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import zarr

from phantom import write as dicom_write
from pipeline.cli import main as cli
from testkit.dicom_files import enhanced_file, frame_groups, gradient
from testkit.small import Small, run, write, write_slices


def test_a_failed_frame_is_reported_and_the_removal_of_its_file_is_noticed(tmp_path):
    small = Small(tmp_path)
    write_slices(small.src, range(2))
    groups = [frame_groups(0, 1, -1024), frame_groups(5, 1, -1024, "US")]
    write(small.src / "frames.dcm", enhanced_file(np.stack([gradient(), gradient()]), groups))
    small.build("--max-rejects", 1)
    assert pd.read_csv(small.out / "rejects.csv")["message"].tolist() == ["frame 2: RescaleType is not HU"]
    (small.src / "frames.dcm").unlink()
    assert "such as frames.dcm" in small.build("--retry-rejected", code=1).stderr


def multi_frame(frames: int, uid: str) -> bytes:
    """Return a legacy multi-frame CT file with `frames` different frames of 8 x 8 pixels."""
    attributes = dicom_write.SliceAttributes(
        sop_instance_uid=uid,
        patient_id="p",
        study_instance_uid="1.2",
        series_instance_uid="1.3",
        position=(0.0, 0.0, 0.0),
        orientation=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
        spacing_mm=(1.0, 1.0),
        bits_stored=16,
        intercept=0,
        windows=(("40", "80"),),
        implicit_vr=False,
    )
    stored = np.arange(frames * 64, dtype=np.int16).reshape(frames * 8, 8)
    dataset = pydicom.dcmread(io.BytesIO(dicom_write.encode_slice(stored, attributes)))
    dataset.Rows, dataset.NumberOfFrames = 8, frames
    file = io.BytesIO()
    dataset.save_as(file)
    return file.getvalue()


def test_files_with_many_frames_get_their_own_shards(tmp_path):
    src = tmp_path / "dicoms"
    src.mkdir()
    for number, frames in enumerate((1, 3, 5, 23)):
        (src / f"{number}.dcm").write_bytes(multi_frame(frames, f"1.2.{number + 1}"))
    shipped = Path(cli.__file__).parents[1].joinpath("data_catalog.yaml").read_text()
    catalog = tmp_path / "catalog.yaml"
    catalog.write_text(shipped.replace("rows_per_shard: 256", "rows_per_shard: 8"))
    out = tmp_path / "cache.zarr"
    build = ("build", "--src", src, "--out", out, "--workers", 0, "--catalog", catalog, "--size", 8)
    run(*build)
    table = pd.read_csv(out / "metadata.csv")
    frames = table.groupby("sop_instance_uid")["frame"].apply(lambda column: sorted(column))
    assert frames["1.2.1"] == [0]
    assert [frames[uid] for uid in ("1.2.2", "1.2.3", "1.2.4")] == [list(range(1, n + 1)) for n in (3, 5, 23)]
    group = zarr.open_group(out, mode="r")
    images = group[group.attrs["sizes"]["8"]]
    for row, uid, frame in table[["row", "sop_instance_uid", "frame"]].itertuples(index=False):
        stored = pydicom.dcmread(src / f"{int(uid[-1]) - 1}.dcm").pixel_array.reshape(-1, 8, 8)[max(frame - 1, 0)]
        grey = np.floor(255 * np.clip((stored - 0) / 80, 0, 1) + 0.5)
        np.testing.assert_array_equal(images[row][0], grey)
    assert "nothing to do" in run(*build).stderr
    run(*build, "--size", 4)
    assert json.loads((out / "zarr.json").read_text())["attributes"]["num_slices"] == 32
