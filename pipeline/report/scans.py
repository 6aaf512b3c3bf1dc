"""The sections of the report about the scans: scanners and geometry."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from pipeline.cache.shard_record import KIND_NOT_KEPT
from pipeline.report.facts import ROTATED_DEGREES, Count, Facts
from pipeline.report.page import Row, Section, Share, chart, charts, paragraph, table, tables, ticks
from pipeline.words import counted

MOST_ROWS = 12
MOST_BARS = 24
# Source: DICOM PS3.6 table A-1, abbreviated.
CODINGS = {
    "1.2.840.10008.1.2": "Implicit VR Little Endian",
    "1.2.840.10008.1.2.1": "Explicit VR Little Endian",
    "1.2.840.10008.1.2.1.99": "Deflated Explicit VR Little Endian",
    "1.2.840.10008.1.2.2": "Explicit VR Big Endian",
    "1.2.840.10008.1.2.4.50": "JPEG baseline, 8 bits",
    "1.2.840.10008.1.2.4.51": "JPEG extended, 12 bits",
    "1.2.840.10008.1.2.4.57": "JPEG lossless",
    "1.2.840.10008.1.2.4.70": "JPEG lossless, first-order prediction",
    "1.2.840.10008.1.2.4.80": "JPEG-LS lossless",
    "1.2.840.10008.1.2.4.81": "JPEG-LS near-lossless",
    "1.2.840.10008.1.2.4.90": "JPEG 2000 lossless",
    "1.2.840.10008.1.2.4.91": "JPEG 2000",
    "1.2.840.10008.1.2.4.201": "High-Throughput JPEG 2000 lossless",
    "1.2.840.10008.1.2.4.202": "High-Throughput JPEG 2000 lossless, RPCL",
    "1.2.840.10008.1.2.4.203": "High-Throughput JPEG 2000",
    "1.2.840.10008.1.2.5": "RLE",
}
KINDS = {
    "perfusion": "are perfusion images according to ImageType",
    "material": "are material images (iodine, virtual non-contrast) according to ImageType",
    "projection": "are projections (MIP) according to ImageType",
    KIND_NOT_KEPT: "were read before the kind of image was stored; the next build reads them again",
}
PLACED_FROM = {
    "position": "ImagePositionPatient, along the slice normal",
    "slice_location": "SliceLocation",
    "instance_number": "InstanceNumber: only the order is known",
    "none": "none: z_norm is 0.5",
}


def scanners(facts: Facts) -> Section:
    """Return the section about codings, manufacturers, stored values, frame sizes and special slices."""
    slices = len(facts.table)
    found = [
        _counted("Transfer syntax of the files.", "coding", facts.counted["coding"], _coding),
        _counted(
            "Manufacturers, from a fixed list.", "name", facts.counted["manufacturer"], lambda value: str(value[0])
        ),
        _counted("Stored values. HU = stored x slope + intercept.", "stored as", facts.counted["stored"], _stored),
        _counted(
            "Size of the frames before resizing.", "height x width", facts.counted["frame"], "{0[0]} x {0[1]}".format
        ),
    ]
    rows: list[Row] = []
    lossy = sum(count.slices for count in facts.counted["lossy"] if count.value[0])
    rows.append(["were compressed lossily, as far as the file says", f"{lossy:,}", Share(lossy, slices)])
    repairs = [count for count in facts.counted["repair"] if count.value[0]]
    rows += [[f"were repaired by {of.value[0]}", f"{of.slices:,}", Share(of.slices, slices)] for of in repairs]
    kinds = {of.value[0]: of.slices for of in facts.counted["kind"]}
    rows += [[words, f"{kinds[kind]:,}", Share(kinds[kind], slices)] for kind, words in KINDS.items() if kind in kinds]
    alone = sum(count.slices for count in facts.counted["from_study"] if count.value[0])
    rows.append(["have no PatientID, so that the study counts as the patient", f"{alone:,}", Share(alone, slices)])
    found.append(table("Special slices.", ["slices that", "slices", "share of slices"], rows))
    blocks = [tables(found)]
    if alone:
        words = (
            f"Identified by their study only: {counted(facts.patients_from_study, 'patient')}. A person with several "
            "of these studies counts as several patients, and may be in two subsets of a split."
        )
        blocks.append(paragraph(words, "notice"))
    return Section("Scanners", blocks)


def _coding(value: tuple[Any, ...]) -> str:
    return f"{CODINGS[value[0]]}\n{value[0]}" if value[0] in CODINGS else "other"


def _stored(value: tuple[Any, ...]) -> str:
    bits, signed, slope, intercept = value
    return f"{bits} bits, {'signed' if signed else 'unsigned'}\nslope {slope:g}, intercept {intercept:g}"


def _counted(caption: str, name: str, counts: Sequence[Count], words: Callable[[tuple[Any, ...]], str]) -> str:
    """Return a table of the most frequent values, with the sum of the others in the last line."""
    total = sum(count.slices for count in counts)
    rows: list[Row] = [
        [words(of.value), f"{of.slices:,}", f"{of.series:,}", Share(of.slices, total)] for of in counts[:MOST_ROWS]
    ]
    if rest := counts[MOST_ROWS:]:
        slices = sum(of.slices for of in rest)
        rows.append([f"{len(rest):,} others", f"{slices:,}", "", Share(slices, total)])
    return table(caption, [name, "slices", "in series", "share of slices"], rows)


def geometry(facts: Facts) -> Section:
    """Return the section about spacing, tilt and length of series, sources of z, and special series."""
    series = facts.series
    panels = [
        _histogram("Spacing, median of a series", series["spacing_median_mm"], 20, "mm"),
        _histogram("Tilt of a series", series["tilt_degrees"], 45, "degrees"),
        _histogram("Slices in a series", series["slices"], 500, "slices"),
    ]
    words = (
        "Number of series. Bars are centred on round numbers; the last one also counts values above 20 mm, 45 degrees "
        "or 500 slices."
    )
    repeated = int(series["repeated"].sum())
    return Section(
        "Geometry",
        [
            charts([panel for panel in panels if panel], words),
            tables([_placed(facts), _notes(series)]),
            paragraph(f"Slices at the position of another slice of their series: {repeated:,}."),
        ],
    )


def _placed(facts: Facts) -> str:
    found = [(words, facts.z_from.get(name, 0)) for name, words in PLACED_FROM.items()]
    rows: list[Row] = [[words, f"{slices:,}", Share(slices, len(facts.table))] for words, slices in found]
    return table("Source of the position of slices.", ["z from", "slices", "share of slices"], rows)


def _notes(series: pd.DataFrame) -> str:
    one_position = series["spacing_median_mm"].isna() & (series["z_from"] != "instance_number")
    notes = {
        "uneven spacing\nspacings differ by more than 0.1 mm": series["uneven"],
        "gaps\na spacing above 1.5 times those around it": series["gaps"] > 0,
        "repeated positions\nslices within 0.001 mm of another": series["repeated"] > 0,
        "mixed orientations\nmore than one slice normal": series["orientations"] > 1,
        "two tilts\nof these, exactly two slice normals": series["orientations"] == 2,
        "rotated in the plane\nby more than 1 degree": series["rotated_degrees"] > ROTATED_DEGREES,
        "one position only\nz_norm is 0.5": one_position,
    }
    found = [(words, int(has.sum())) for words, has in notes.items()]
    rows: list[Row] = [[words, f"{number:,}", Share(number, len(series))] for words, number in found]
    return table("Special series.", ["series with", "series", "share of series"], rows)


def _histogram(title: str, values: pd.Series, limit: float, unit: str) -> str:
    """Return a histogram of series, with values above `limit` in the last bar; "" if no series has a value."""
    known = values.dropna().to_numpy(float)
    if not known.size:
        return ""
    shown = np.minimum(known, limit)
    centres = ticks(0, max(float(shown.max()), 1.0), MOST_BARS)
    step = centres[1]
    edges = (np.arange(len(centres) + 2) - 0.5) * step
    return chart(title, edges, np.histogram(shown, edges)[0], unit)
