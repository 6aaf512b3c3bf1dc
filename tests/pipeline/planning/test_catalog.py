"""The packaged catalog, and one-line errors for mistakes in a user's catalog."""

import itertools
import json
import shutil
from pathlib import Path

import pytest
import yaml

from pipeline.errors import CatalogError
from pipeline.planning import catalog

SHIPPED = Path(catalog.__file__).parents[2] / "data_catalog.yaml"


def test_the_packaged_catalog_has_windows_and_class_weights_of_the_challenge():
    rsna = catalog.load(SHIPPED).dataset("rsna")
    assert [(w.name, w.level_hu, w.width_hu) for w in rsna.windows] == [
        ("brain", 40, 80),
        ("subdural", 50, 130),
        ("bone", 600, 2800),
    ]
    assert {c.name: c.weight for c in rsna.classes} == {
        "epidural": 1,
        "intraparenchymal": 1,
        "intraventricular": 1,
        "subarachnoid": 1,
        "subdural": 1,
        "any": 2,
    }
    assert rsna.repair == "rsna_12bit_wrap"
    assert catalog.load(SHIPPED).dataset("generic").repair == "none"


def test_label_settings_are_read_and_have_defaults(tmp_path):
    every = {"type": "wide", "level": "study", "soft": True, "filepath": "reads.csv"}
    read = catalog.load(edited(tmp_path, lambda c: c["datasets"]["generic"].update(labels=every))).dataset("generic")
    assert read.labels == catalog.LabelFile(**every)
    assert catalog.load(SHIPPED).dataset("generic").labels == catalog.LabelFile()
    with pytest.raises(CatalogError, match="must be true or false, not 'yes!'"):
        catalog.load(edited(tmp_path, lambda c: c["datasets"]["generic"].update(labels={"soft": "yes!"})))


def test_the_package_has_a_copy_of_the_catalog(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert catalog.load(None) == catalog.load(SHIPPED)


def test_a_catalog_in_the_working_folder_takes_precedence(tmp_path, monkeypatch):
    content = yaml.safe_load(SHIPPED.read_text())
    content["sizes"] = [64]
    (tmp_path / "data_catalog.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.chdir(tmp_path)
    assert catalog.load(None).sizes == (64,)


def edited(tmp_path: Path, edit) -> Path:
    content = json.loads(json.dumps(yaml.safe_load(SHIPPED.read_text())))  # so that no object is shared between keys
    edit(content)
    file = tmp_path / "data_catalog.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda c: c["windows"][1].update(widht_hu=3), "windows[1].widht_hu: unknown key, did you mean width_hu?"),
        (lambda c: c["windows"][1].update(width_hu=0), "windows[1]: width_hu is 0, it must be above 0"),
        (lambda c: c["windows"][0].update(level_hu="40"), "windows[0].level_hu: must be a number, not '40'"),
        (lambda c: c["windows"][0].update(level_hu=float("nan")), "windows[0].level_hu: must be finite"),
        (lambda c: c["windows"].append(c["windows"][0]), "windows: 'brain' is given twice"),
        (lambda c: c.pop("windows"), "windows: is missing"),
        (
            lambda c: c.update(windows=[{"name": f"w{n}", "level_hu": 1, "width_hu": 2} for n in range(9)]),
            "windows: 9 windows, at most 8 are possible",
        ),
        (lambda c: c.update(sizes=[224, -1]), "sizes: -1 pixels is not possible"),
        (lambda c: c.update(sizes=[224.5]), "sizes[0]: must be a whole number"),
        (lambda c: c.update(sizes=True), "sizes: must be a list"),
        (lambda c: c["splits"].update(test=0.5), "splits: the shares are 0.7, 0.15, 0.5"),
        (lambda c: c["layout"].update(compression="lz5"), "layout.compression: 'lz5' is unknown, did you mean lz4?"),
        (lambda c: c["layout"].update(compression_level=99), "layout: compression_level is 99, lz4 takes 1 to 9"),
        (lambda c: c["datasets"]["rsna"].update(repair="wrap"), "datasets.rsna.repair: 'wrap' is unknown"),
        (lambda c: c["datasets"]["rsna"]["classes"][0].update(weight=-1), "datasets.rsna.classes[0]: weight is -1"),
        (lambda c: c["datasets"]["rsna"]["classes"][0].update(name="row"), "'row' cannot be a column"),
        (lambda c: c["datasets"]["rsna"].pop("description"), "datasets.rsna.description: is missing"),
        (lambda c: c.update(datasets=None), "datasets: must be a mapping"),
    ],
)
def test_a_mistake_is_reported_in_one_line_with_file_and_key(tmp_path, edit, said):
    file = edited(tmp_path, edit)
    with pytest.raises(CatalogError) as error:
        catalog.load(file)
    assert said in str(error.value)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in itertools.pairwise("abcdefghi")
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{name}: &{name} {{<<: [{', '.join([f'*{before}'] * 9)}]}}\n" for before, name in itertools.pairwise("abcdefghi")
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BOMB, "more than 100,000 values with aliases expanded"),
        (MERGES, "more than 100,000 values with aliases expanded"),
        ("[" * 5000, "nested more than 40 levels deep"),
        ("{a: " * 5000, "nested more than 40 levels deep"),
        ("".join(f"{' ' * depth}a:\n" for depth in range(500)), "nested more than 40 levels deep"),
        ("a: &a [*a]", "an alias that contains itself"),
        ("windows: 1" + "0" * 5000, "integer string conversion"),
        ("windows: [{name: a, level_hu: 0x" + "f" * 999 + ", width_hu: 1}]\ndatasets: {a: 1}", "must be at most"),
        ("windows: " + "x" * 5000 + "\ndatasets: {a: 1}", "windows: must be a list"),
        ("x" * (1 << 20) + "xx", "larger than 1 MB"),
        ("w: 2026-99-99", "month must be in 1..12"),
    ],
    ids=range(11),
)
def test_malicious_yaml_is_reported_in_one_short_line(tmp_path, text, said):
    file = tmp_path / "catalog.yaml"
    file.write_text(text)
    with pytest.raises(CatalogError) as error:
        catalog.load(file)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


def test_the_closest_name_is_suggested_for_an_unknown_data_set():
    with pytest.raises(CatalogError, match=r"did you mean rsna\?"):
        catalog.load(SHIPPED).dataset("rnsa")


def test_invalid_files_are_reported_in_one_line(tmp_path):
    broken = tmp_path / "broken.yaml"
    broken.write_text("windows: [\n - a: {")
    with pytest.raises(CatalogError, match="not valid YAML") as error:
        catalog.load(broken)
    assert "\n" not in str(error.value)
    with pytest.raises(CatalogError, match="cannot be read"):
        catalog.load(tmp_path / "absent.yaml")
    shutil.copy(SHIPPED, tmp_path / "copy.yaml")
    assert catalog.load(tmp_path / "copy.yaml").sizes == (224,)
