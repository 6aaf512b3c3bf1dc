"""Messages about label files and the catalog with advice: tests provoke each of them and follow its advice."""

import re
from pathlib import Path

import pytest

from testkit.advice import Case, by_hand
from testkit.advised_builds import Cases, again, build, built
from testkit.small import Small, run, write, write_slices

CASES = Cases()
HEAD, LINE = b"image_id,bleed,any\n", b"1.2.3.0.0,1,1\n"


def _catalog(small: Small) -> str:
    return Path(small.options()[5]).read_text("utf-8")


def _after_correcting_labels(small: Small, wrong: bytes, advice: str, right: bytes) -> Case:
    """Return a case in which the label file must be corrected."""
    file = small.folder / "l.csv"
    write(file, wrong)
    return Case(build(small, labels=file), advice, by_hand(lambda: write(file, right)), again=True)


def _after_setting_in_catalog(small: Small, content: bytes, advice: str) -> Case:
    """Return a case with a valid label file, in which the group of the advice must be added to the catalog."""
    labels, other = small.folder / "l.csv", small.folder / "other.yaml"
    write(labels, content)

    def follow(found: re.Match[str]) -> list[list[object]]:
        other.write_text(_catalog(small) + f"    {found[1]}\n", "utf-8")
        return [build(small, labels=labels, catalog=other)]

    return Case(build(small, labels=labels), advice, follow)


def _after_correcting_catalog(small: Small, right: str, wrong: str, advice: str) -> Case:
    """Return a case in which one word of the catalog must be corrected."""
    other = small.folder / "other.yaml"
    text = _catalog(small)
    assert right in text
    other.write_text(text.replace(right, wrong), "utf-8")
    return Case(build(small, catalog=other), advice, by_hand(lambda: other.write_text(text, "utf-8")), again=True)


# --- label files -----------------------------------------------------------------------------------------------------


@CASES.add
def _labels_of_another_level(small: Small) -> Case:
    by_series = b"series_instance_uid,bleed,any\n1.2.5.0,1,1\n"
    return _after_setting_in_catalog(
        small, by_series, r"it has labels per series .* set (labels: \{level: series\}) in"
    )


@CASES.add
def _labels_of_another_level_and_a_file_with_labels_per_slice(small: Small) -> Case:
    by_series = b"series_instance_uid,bleed,any\n1.2.5.0,1,1\n"
    return _after_correcting_labels(small, by_series, "or give a file with labels per slice", HEAD + LINE)


@CASES.add
def _probabilities(small: Small) -> Case:
    between = HEAD + b"1.2.3.0.0,0.5,0.5\n"
    return _after_setting_in_catalog(small, between, r"for probabilities, set (labels: \{soft: true\}) in the catalog")


@CASES.add
def _contradictory_labels(small: Small) -> Case:
    return _after_correcting_labels(
        small, HEAD + LINE + b"1.2.3.0.0,0,0\n", "twice with different labels; correct the file", HEAD + LINE
    )


@CASES.add
def _contradictory_labels_in_the_long_format(small: Small) -> Case:
    long = b"ID,Label\n1.2.3.0.0_bleed,1\n1.2.3.0.0_any,1\n"
    wrong = long + b"1.2.3.0.0_bleed,0\n"
    return _after_correcting_labels(small, wrong, "_bleed is given twice with different labels; correct the file", long)


@CASES.add
def _two_columns_for_a_class(small: Small) -> Case:
    wrong = b"image_id,Bleed,BLEED,any\n1.2.3.0.0,1,0,1\n"
    return _after_correcting_labels(small, wrong, "both match the class bleed; remove one", HEAD + LINE)


@CASES.add
def _two_columns_with_the_same_name(small: Small) -> Case:
    wrong = b"image_id,bleed,any,any\n1.2.3.0.0,1,0,1\n"
    return _after_correcting_labels(small, wrong, "two columns are called 'any'; rename or remove one", HEAD + LINE)


@CASES.add
def _a_cell_with_a_separator(small: Small) -> Case:
    wrong, right = (b"image_id,bleed,any,note\n1.2.3.0.0,1,1," + note for note in (b"a, b\n", b'"a, b"\n'))
    return _after_correcting_labels(small, wrong, "or quote cells that contain the separator", right)


@CASES.add
def _a_truncated_line(small: Small) -> Case:
    return _after_correcting_labels(
        small, HEAD + b"1.2.3.0.0,1\n", "line 2 has fewer cells .* correct the line", HEAD + LINE
    )


@CASES.add
def _labels_without_an_identifying_column(small: Small) -> Case:
    return _after_correcting_labels(
        small, b"bleed,any\n1,1\n", "every column is a class; one must identify the slice", HEAD + LINE
    )


@CASES.add
def _labels_in_utf_16(small: Small) -> Case:
    text = HEAD + LINE
    return _after_correcting_labels(
        small, text.decode().encode("utf-16"), "it is UTF-16; save it as CSV with UTF-8", text
    )


@CASES.add
def _labels_in_another_encoding(small: Small) -> Case:
    text = "image_id,bleed,any,Größe\n1.2.3.0.0,1,1,3\n"
    return _after_correcting_labels(small, text.encode("latin-1"), "it is not UTF-8; save it as UTF-8", text.encode())


@CASES.add
def _long_labels_if_the_catalog_says_wide(small: Small) -> Case:
    labels, other = small.folder / "l.csv", small.folder / "other.yaml"
    write(labels, b"ID,Label\n1.2.3.0.0_bleed,1\n1.2.3.0.0_any,1\n")
    other.write_text(_catalog(small) + "    labels: {type: wide}\n", "utf-8")
    taken_out = by_hand(lambda: other.write_text(_catalog(small), "utf-8"))
    return Case(build(small, labels=labels, catalog=other), "remove `type: wide` from", taken_out, again=True)


def _class_missing_from_kept_labels(small: Small) -> tuple[Case, Path]:
    """Return a case with a new class, while the labels of the commit are kept because their file is missing."""
    labels, other = small.folder / "labels.csv", small.folder / "other.yaml"
    small.labels = {"1.2.3.0.0": 1}
    small.build()
    labels.unlink()
    small.labels = None
    other.write_text(_catalog(small).replace("{name: any,", "{name: new}, {name: any,"), "utf-8")
    wanted = build(small, catalog=other)
    return Case(wanted, "is gone, and .* restore the file, give (--labels) FILE, or remove the class"), labels


@CASES.add
def _restored_labels(small: Small) -> Case:
    case, labels = _class_missing_from_kept_labels(small)
    case.follow = by_hand(lambda: write(labels, b"image_id,bleed,new,any\n1.2.3.0.0,1,0,1\n"))
    case.again = True
    return case


@CASES.add
def _labels_from_another_file(small: Small) -> Case:
    case, _ = _class_missing_from_kept_labels(small)
    other = small.folder / "l.csv"
    write(other, b"image_id,bleed,new,any\n1.2.3.0.0,1,0,1\n")
    case.follow = lambda found: [[*case.command, found[1], other]]
    return case


@CASES.add
def _kept_labels_without_the_new_class(small: Small) -> Case:
    case, _ = _class_missing_from_kept_labels(small)
    case.follow = again(small)
    return case


@pytest.mark.parametrize("words", [("--no-labels",), ("--labels", "l.csv")])
def test_a_plan_names_the_options_that_change_kept_labels(words: tuple[str, ...], tmp_path: Path) -> None:
    small = Small(tmp_path, labels={"1.2.3.0.0": 1})
    write_slices(small.src, range(3))
    small.build()
    (tmp_path / "labels.csv").unlink()
    small.labels = None
    write(tmp_path / "l.csv", HEAD + b"1.2.3.0.1,1,1\n")
    assert "(--labels FILE or --no-labels changes that)" in small.plan(code=0).stdout
    small.build(*(tmp_path / word if word.endswith("csv") else word for word in words))
    labelled = (small.out / "metadata.csv").read_text("utf-8").count(",1,1\n")
    said = run("info", small.out).stdout
    assert labelled == (1 if "--labels" in words else 0), said


# --- the catalog -----------------------------------------------------------------------------------------------------


@CASES.add
def _an_invalid_window_name(small: Small) -> Case:
    return _after_correcting_catalog(small, "name: bone", "name: 'a,b'", "not a valid window name, choose another")


@CASES.add
def _an_invalid_class_name(small: Small) -> Case:
    wrong = "cannot be a column of the table, choose another class name"
    return _after_correcting_catalog(small, "name: bleed", "name: row", wrong)


@CASES.add
def _an_impossible_size(small: Small) -> Case:
    return Case(build(small, size=100000), "pixels is not possible, give (1) to", lambda m: [build(small, size=m[1])])


@CASES.add
def _a_misspelt_key(small: Small) -> Case:
    return _after_correcting_catalog(small, "width_hu: 80", "widht_hu: 80", "did you mean width_hu")


@CASES.add
def _a_misspelt_data_set(small: Small) -> Case:
    return Case(build(small, dataset="generc"), r"did you mean (\w+)", lambda m: [build(small, dataset=m[1])])


@CASES.add
def _dropping_a_missing_size(small: Small) -> Case:
    built(small)
    drop = build(small, "--size", 12, "--drop-size", 7)
    follow = lambda found: [build(small, "--size", 12, "--drop-size", found[1])]  # noqa: E731
    return Case(drop, r"the cache does not have this size, but (\d+)", follow)


@pytest.mark.parametrize("name", CASES)
def test_following_the_advice_succeeds(name: str, tmp_path: Path) -> None:
    CASES.follow(name, tmp_path)
