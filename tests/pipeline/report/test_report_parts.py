"""Parts of the report: PNG encoding, charts, and the choice of slices."""

import io
import re

import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from pipeline.report.page import chart, ticks
from pipeline.report.pictures import choose_slices, encode_png


@given(arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=40)))
def test_png_is_read_by_pillow(grey: np.ndarray) -> None:
    np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(encode_png(grey)))), grey)


@given(st.floats(-1e4, 1e4), st.floats(1e-3, 1e6), st.integers(1, 40))
def test_ticks_are_few_round_numbers_in_range(low: float, span: float, most: int) -> None:
    found = ticks(low, low + span, most)
    assert len(found) <= most + 1
    assert all(low - span * 1e-6 <= at <= low + span * (1 + 1e-6) for at in found)
    if len(found) > 1:
        assert f"{found[1] - found[0]:.0e}"[0] in "125"


@given(arrays(float, st.integers(1, 30), elements=st.one_of(st.integers(0, 10**6), st.just(np.nan))))
def test_bars_are_proportional_to_their_values(heights: np.ndarray) -> None:
    drawn = chart("t", np.arange(len(heights) + 1.0), heights, "x")
    bars = [float(height) for height in re.findall(r'<rect[^>]* height="([0-9.]+)"', drawn)]
    wanted = heights[heights > 0]
    assert len(bars) == len(wanted)
    if len(wanted):
        np.testing.assert_allclose(np.array(bars) / max(bars), wanted / wanted.max(), atol=1e-3)


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_the_choice_of_slices_does_not_depend_on_rows(seed: int) -> None:
    rng = np.random.default_rng(seed)
    series = np.repeat(np.arange(15), rng.integers(1, 7, 15))
    frame = pd.DataFrame(
        {
            "series_instance_uid": [f"1.2.{n // 2}" for n in series],  # two studies share each
            "study_instance_uid": [f"1.1.{n}" for n in series],
            "patient_id": [f"p{n % 6}" for n in series],
        }
    )
    frame["z_norm"] = rng.random(len(frame))
    chosen = []
    for order in (np.arange(len(frame)), rng.permutation(len(frame))):
        table = frame.iloc[order].assign(row=np.arange(len(frame))).reset_index(drop=True)
        found = choose_slices(table)
        chosen.append([(uid, table["z_norm"][lines].tolist()) for uid, lines in found])
        for (patient, study, uid), lines in found:
            of_series = (table["series_instance_uid"] == uid) & (table["study_instance_uid"] == study)
            assert len(set(lines)) == len(lines) == min(3, of_series.sum())
            assert set(table["patient_id"][lines]) == {patient}
    assert chosen[0] == chosen[1]
    enough = frame.groupby("study_instance_uid").filter(lambda of: len(of) >= 3)
    patients = frame.groupby("study_instance_uid")["patient_id"].first()[[study for (_, study, _), _ in chosen[0]]]
    assert len(chosen[0]) == 8
    if enough["study_instance_uid"].nunique() >= 8:
        assert patients.nunique() == enough["patient_id"].nunique()
