"""Labels of a series, a study or a patient apply to its slices, and labels may refer to slices by file name."""

import json

import pandas as pd
import pytest

from testkit.small import Small, run, slice_bytes, write, write_slices


@pytest.mark.parametrize("level", ["series", "study", "patient"])
def test_labels_of_a_larger_unit_apply_to_its_slices(tmp_path, level, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    key = {"series": "series_instance_uid", "study": "study_instance_uid", "patient": "patient_id"}[level]
    small = Small(tmp_path)
    for number, series in ((0, 0), (1, 0), (0, 1), (1, 2)):
        write(small.src / f"{series}{number}.dcm", slice_bytes(number, series=series))
    small.build()
    names = sorted(set(pd.read_csv(small.out / "metadata.csv")[key]))
    values = dict(zip(names, (0.25, 1, 0), strict=False))  # made-up slices may share a study or a patient
    file = tmp_path / "labels.csv"
    file.write_text("".join([f"{key},bleed,any\n", *(f"{name},{value},1\n" for name, value in values.items())]))
    catalog = tmp_path / "catalog.yaml"
    text = catalog.read_text().replace(
        "patient_ids: keep", f"patient_ids: hash\n    labels: {{level: {level}, soft: true}}"
    )
    catalog.write_text(text)
    options = ("--src", small.src, "--out", tmp_path / "labelled.zarr", "--catalog", catalog, "--workers", 0)
    run("build", *options, "--labels", file)
    kept = pd.read_csv(small.out / "metadata.csv").set_index("sop_instance_uid")
    table = pd.read_csv(tmp_path / "labelled.zarr" / "metadata.csv").set_index("sop_instance_uid")
    assert table["bleed"].to_dict() == kept[key].map(values).to_dict()
    assert json.loads((tmp_path / "labelled.zarr" / "zarr.json").read_bytes())["attributes"]["label_level"] == level
    if level == "patient":
        assert not set(table["patient_id"]) & set(names)
    file.unlink()
    write(small.src / "new.dcm", slice_bytes(2, series=0))  # the commit has the labels of its series, study and patient
    run("build", *options)
    table = pd.read_csv(tmp_path / "labelled.zarr" / "metadata.csv").set_index("sop_instance_uid")
    assert len(table) == 5
    assert table["bleed"].notna().all()


def test_labels_may_refer_to_slices_by_file_name(tmp_path):
    small = Small(tmp_path, labels={"000": 1, "a.b": 0})
    write_slices(small.src, range(2))
    (small.src / "001.dcm").rename(small.src / "a.b.dcm")
    options = small.options()
    catalog = tmp_path / "catalog.yaml"
    catalog.write_text(catalog.read_text().replace("image_id: sop_instance_uid", "image_id: file_stem"))
    run("build", *options, "--workers", 0)
    table = pd.read_csv(small.out / "metadata.csv", dtype={"image_id": str}).set_index("image_id")
    assert table["bleed"].to_dict() == {"000": 1, "a.b": 0}
