"""Label files: both formats, merging, and what is refused."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import SourceError
from pipeline.planning.catalog import LabelFile
from pipeline.tables.labels import read_labels

CLASSES = ["epidural", "subdural", "any"]
LONG, WIDE = LabelFile("rsna_long", "labels.csv"), LabelFile("wide", "labels.csv")


def long_csv(rows) -> bytes:
    return ("ID,Label\n" + "".join(f"{key},{value}\n" for key, value in rows)).encode()


@given(
    st.dictionaries(st.from_regex(r"ID_[0-9a-f]{9}", fullmatch=True), st.tuples(*[st.integers(0, 1)] * 3), min_size=1)
)
def test_long_and_wide_say_the_same(labels):
    long = long_csv(
        (f"{image}_{name}", value) for image, row in labels.items() for name, value in zip(CLASSES, row, strict=True)
    )
    wide = "image_id,any,subdural,epidural\n" + "".join(f"{i},{c},{b},{a}\n" for i, (a, b, c) in labels.items())
    expected = pd.DataFrame.from_dict(labels, orient="index", columns=CLASSES).astype(np.float32)
    for found in (read_labels(LONG, long, CLASSES), read_labels(WIDE, wide.encode(), CLASSES)):
        pd.testing.assert_frame_equal(
            found, expected, check_names=False, check_index_type=False, check_column_type=False
        )


def test_lines_that_agree_are_merged_and_missing_ones_stay_empty():
    found = read_labels(LONG, long_csv([("ID_a_any", 1), ("ID_a_any", 1), ("ID_b_epidural", 0)]), CLASSES)
    assert found.loc["ID_a"].tolist()[2] == 1
    assert np.isnan(found.loc["ID_a"].to_numpy(float)).sum() == 2
    assert found.loc["ID_b", "epidural"] == 0


def test_a_class_whose_name_ends_like_another_is_not_confused():
    found = read_labels(LONG, long_csv([("x_acute_any", 1), ("x_any", 0)]), ["any", "acute_any"])
    assert found.loc["x"].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("labels", "content", "said"),
    [
        (LONG, long_csv([("ID_a_any", 1), ("ID_a_any", 0)]), "ID_a_any is given twice with different labels"),
        (WIDE, b"image_id,epidural,subdural,any\na,1,0,1\na,0,0,1\n", "a is given twice with different labels"),
        (LONG, long_csv([("ID_a_subdurl", 1)]), "unknown class 'subdurl', did you mean subdural?"),
        (LONG, long_csv([("ID_a_any", 2)]), "line 2: Label is '2', it must be 0, 1 or empty"),
        (WIDE, b"image_id,epidural,subdural,any\na,1,0,yes\n", "line 2: any is 'yes'"),
        (LONG, b"image,any\na,1\n", "the RSNA long format has ID,Label"),
        (WIDE, b"ID,Label\nID_a_any,1\n", "use --dataset rsna"),
        (WIDE, b"image_id,epidural,subdural,Any\na,1,0,1\n", "no column for the class any, is it the column Any?"),
        (LONG, b"", "not a CSV file with labels"),
        (LONG, b"\xff\xfe\x00", "not a CSV file with labels"),
    ],
)
def test_what_cannot_be_right_is_refused_in_one_line(labels, content, said):
    with pytest.raises(SourceError) as error:
        read_labels(labels, content, CLASSES)
    assert said in str(error.value)
    assert "\n" not in str(error.value).strip()
    assert str(error.value).startswith("labels.csv: ")
