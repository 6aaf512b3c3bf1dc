"""Label files: both formats, merging, and errors."""

from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import SourceError
from pipeline.planning.catalog import LabelFile
from pipeline.tables import labels as labels_module
from pipeline.tables.labels import read_labels
from pipeline.tables.long_labels import read_plain

CLASSES = ["epidural", "subdural", "any"]
LONG, WIDE = LabelFile("rsna_long", "labels.csv"), LabelFile("wide", "labels.csv")


def long_csv(rows) -> bytes:
    return ("ID,Label\n" + "".join(f"{key},{value}\n" for key, value in rows)).encode()


@given(
    st.dictionaries(st.from_regex(r"ID_[0-9a-f]{9}", fullmatch=True), st.tuples(*[st.integers(0, 1)] * 3), min_size=1)
)
def test_long_and_wide_formats_are_equivalent(labels):
    long = long_csv(
        (f"{image}_{name}", value) for image, row in labels.items() for name, value in zip(CLASSES, row, strict=True)
    )
    wide = "image_id,any,subdural,epidural\n" + "".join(f"{i},{c},{b},{a}\n" for i, (a, b, c) in labels.items())
    expected = pd.DataFrame.from_dict(labels, orient="index", columns=CLASSES).astype(np.float32)
    for found in (read_labels(LONG, long, CLASSES), read_labels(WIDE, wide.encode(), CLASSES)):
        pd.testing.assert_frame_equal(
            found.sort_index(),
            expected.sort_index(),
            check_names=False,
            check_index_type=False,
            check_column_type=False,
        )


def test_identical_lines_are_merged_and_missing_labels_are_nan():
    found = read_labels(LONG, long_csv([("ID_a_any", 1), ("ID_a_any", 1), ("ID_b_epidural", 0)]), CLASSES)
    assert found.loc["ID_a"].tolist()[2] == 1
    assert np.isnan(found.loc["ID_a"].to_numpy(float)).sum() == 2
    assert found.loc["ID_b", "epidural"] == 0


def test_a_class_whose_name_ends_with_another_one_is_recognised():
    found = read_labels(LONG, long_csv([("x_acute_any", 1), ("x_any", 0)]), ["any", "acute_any"])
    assert found.loc["x"].tolist() == [0, 1]


# The same labels in different formats.
TABLE = {"ID_a": [1, 0, 1], "ID_b": [0, 0, 0], "ID_c": [np.nan, 0, np.nan]}
FORMATS = {
    "plain": "image_id,epidural,subdural,any\nID_a,1,0,1\nID_b,0,0,0\nID_c,,0,\n",
    "semicolons": "image_id;epidural;subdural;any\nID_a;1;0;1\nID_b;0;0;0\nID_c;;0;\n",
    "decimal commas": "image_id;epidural;subdural;any\nID_a;1,0;0,0;1,0\nID_b;0;0;0\nID_c;;0,0;\n",
    "tabs": "image_id\tepidural\tsubdural\tany\nID_a\t1\t0\t1\nID_b\t0\t0\t0\nID_c\t\t0\t\n",
    "CRLF": "image_id,epidural,subdural,any\r\nID_a,1,0,1\r\nID_b,0,0,0\r\nID_c,,0,\r\n",
    "BOM": "\ufeffimage_id,epidural,subdural,any\nID_a,1,0,1\nID_b,0,0,0\nID_c,,0,\n",
    "quotes": '"image_id","epidural","subdural","any"\n"ID_a","1","0","1"\n"ID_b","0","0","0"\n"ID_c","","0",""\n',
    "floats": "image_id,epidural,subdural,any\nID_a,1.0,0.0,1.0\nID_b,0.0,0.0,0.0\nID_c,,0.0,nan\n",
    "words": "image_id,epidural,subdural,any\nID_a,TRUE,False,true\nID_b,FALSE,FALSE,FALSE\nID_c,NaN,FALSE,\n",
    "other case": "image_id,Any,SUBDURAL,Epidural\nID_a,1,0,1\nID_b,0,0,0\nID_c,,0,\n",
    "dcm": "image_id,epidural,subdural,any\nID_a.dcm,1,0,1\nID_b.DCM,0,0,0\nID_c.dcm,,0,\n",
    "index": ",image_id,epidural,subdural,any\n0,ID_a,1,0,1\n1,ID_b,0,0,0\n2,ID_c,,0,\n",
    "other names": "note,SOPInstanceUID,epidural,subdural,any\nx,ID_a,1,0,1\ny,ID_b,0,0,0\nz,ID_c,,0,\n",
    "blanks": "image_id , epidural, subdural ,any\n ID_a ,1 , 0,1\nID_b,0,0,0\n\nID_c,, 0,\n",
    "trailing commas": "image_id,epidural,subdural,any\nID_a,1,0,1,\nID_b,0,0,0,\nID_c,,0,,\n",
    "trailing commas everywhere": "image_id,epidural,subdural,any,\nID_a,1,0,1,\nID_b,0,0,0,\nID_c,,0,,\n",
    "no last line end": "image_id,epidural,subdural,any\nID_a,1,0,1\nID_b,0,0,0\nID_c,,0,",
    "long": "ID,Label\nID_a_epidural,1\nID_a_subdural,0\nID_a_any,1\nID_b_epidural,0\nID_b_subdural,0\n"
    "ID_b_any,0\nID_c_subdural,0\n",
    "long, saved again": "\ufeff;id;label\r\n0;ID_a_Epidural;1.0\r\n1;ID_a_subdural;0.0\r\n2;ID_a_ANY;1.0\r\n"
    "3;ID_b_epidural;0\r\n4;ID_b_subdural;0\r\n5;ID_b_any;0\r\n6;ID_c_subdural;0\r\n",
}


@pytest.mark.parametrize("name", FORMATS)
def test_labels_are_read_in_common_formats(name):
    found = read_labels(LabelFile(filepath="labels.csv"), FORMATS[name].encode(), CLASSES).sort_index()
    assert found.index.tolist() == list(TABLE)
    assert found.index.name == "image_id"
    np.testing.assert_array_equal(found.to_numpy(), np.array(list(TABLE.values()), np.float32))


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["ID_a", "ID_ab", "1.2.3", "x_any", "é"]),
            st.sampled_from(["epidural", "subdural", "any", "anx"]),
            st.sampled_from(["0", "1", "2", "", "1.0", " 1"]),
        ),
        max_size=6,
    ),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
)
def test_the_fast_parser_agrees_with_the_general_one(lines, line_end, ended):
    content = line_end.join(["ID,Label", *(f"{image}_{klass},{value}" for image, klass, value in lines)])
    content = (content + line_end * ended).encode()

    def outcome() -> object:
        try:
            return read_labels(LabelFile(filepath="x"), content, CLASSES).sort_index()
        except SourceError as error:
            return str(error)

    fast = outcome()
    with patch.object(labels_module, "read_plain", lambda content, classes: None):
        general = outcome()
    if isinstance(general, str):
        assert fast == general
    else:
        pd.testing.assert_frame_equal(fast, general, check_index_type=False)
    plain = (
        all(value in "01" and value and klass != "anx" and image.isascii() for image, klass, value in lines) and lines
    )
    if plain and len({(image, klass) for image, klass, _ in lines}) == len(lines):
        assert read_plain(content, CLASSES) is not None, "the fast parser reads plain files"


def test_soft_labels_are_accepted_if_the_catalog_allows_them():
    content = b"image_id,epidural,subdural,any\na,0.25,0,1\n"
    found = read_labels(LabelFile(filepath="labels.csv", soft=True), content, CLASSES)
    assert found.loc["a"].tolist() == [0.25, 0, 1]
    with pytest.raises(SourceError, match=r"epidural is .0.25., it must be 0, 1 or empty; for probab"):
        read_labels(WIDE, content, CLASSES)
    with pytest.raises(SourceError, match=r"any is '1.5', it must be a number from 0 to 1 or empty"):
        read_labels(LabelFile(filepath="labels.csv", soft=True), content.replace(b",1\n", b",1.5\n"), CLASSES)


@pytest.mark.parametrize(
    ("level", "header", "key"),
    [
        ("series", "series_instance_uid", "series_instance_uid"),
        ("study", "StudyInstanceUID", "study_instance_uid"),
        ("study", "name", "study_instance_uid"),
        ("patient", "patient_id", "patient_id"),
    ],
)
def test_labels_of_series_studies_and_patients_are_indexed_by_their_column(level, header, key):
    file = LabelFile(filepath="labels.csv", level=level)
    found = read_labels(file, f"{header},epidural,subdural,any\nx,1,0,1\n".encode(), CLASSES, str.upper)
    assert found.index.name == key
    assert found.index.tolist() == ["X" if level == "patient" else "x"]


def test_labels_per_series_require_a_setting_in_the_catalog():
    content = b"series_instance_uid,epidural,subdural,any\nx,1,0,1\n"
    with pytest.raises(SourceError) as error:
        read_labels(WIDE, content, CLASSES)
    assert "it has labels per series (series_instance_uid), but the catalog says per slice" in str(error.value)
    assert "set labels: {level: series} in the catalog" in str(error.value)


@pytest.mark.parametrize(
    ("labels", "content", "said"),
    [
        (LONG, long_csv([("ID_a_any", 1), ("ID_a_any", 0)]), "ID_a_any is given twice with different labels"),
        (WIDE, b"image_id,epidural,subdural,any\na,1,0,1\na,0,0,1\n", "a is given twice with different labels"),
        (LONG, long_csv([("ID_a_subdurl", 1)]), "unknown class 'subdurl', did you mean subdural?"),
        (LONG, long_csv([("ID_a_any", 2)]), "line 2: Label is '2', it must be 0, 1 or empty"),
        (WIDE, b"image_id,epidural,subdural,any\na,1,0,yes\n", "line 2: any is 'yes'"),
        (LONG, b"image,any\na,1\n", "that of the RSNA long format is ID,Label"),
        (WIDE, b"ID,Label\nID_a_any,1\n", "this is the RSNA long format; remove `type: wide` from"),
        (WIDE, b"image_id,epidural,subdural,anny\na,1,0,1\n", "no column for the class any, is it the column anny?"),
        (WIDE, b"image_id,epidural,subdural,any,Any\na,1,0,1,1\n", None),
        (
            WIDE,
            b"image_id,epidural,subdural,ANY,Any\na,1,0,1,1\n",
            "the columns ANY and Any both match the class any",
        ),
        (WIDE, b"image_id,any,any,epidural,subdural\na,1,0,1,1\n", "two columns are called 'any'"),
        (WIDE, b"image_id,epidural,subdural,any\na,1,0,1,x\n", "line 2 has more cells than the header, 5 instead of 4"),
        (WIDE, b"image_id,epidural,subdural,any\na,1,0,1\nb,1\n", "line 3 has fewer cells than the header"),
        (
            WIDE,
            b"image_id,epidural,subdural,any\na,1,0,1,2,3,4\n",
            "line 2 has more cells than the header, 7 instead of 4",
        ),
        (WIDE, b'image_id,epidural,subdural,any\n"a,1,0,1\n', "line 2: not a CSV file with labels (unexpected end of"),
        (WIDE, b"image_id,epidural,subdural,any\n\xfc,1,0,1\n", "line 2: not a CSV file with labels: it is not UTF-8"),
        (WIDE, b"epidural,subdural,any\n1,0,1\n", "every column is a class; one must identify the slice"),
        (WIDE, "image_id,any\na,1\n".encode("utf-16"), "it is UTF-16; save it as CSV with UTF-8"),
        (LONG, b"", "not a CSV file with labels"),
        (LONG, b"\xff\xfe\x00", "not a CSV file with labels"),
    ],
)
def test_invalid_label_files_are_reported_in_one_line(labels, content, said):
    if said is None:  # an exact match takes precedence over other cases
        assert len(read_labels(labels, content, CLASSES)) == 1
        return
    with pytest.raises(SourceError) as error:
        read_labels(labels, content, CLASSES)
    assert said in str(error.value)
    assert "\n" not in str(error.value).strip()
    assert str(error.value).startswith("labels.csv: ")
