"""Write the report of a cache: counts, labels, geometry, rejects, storage, settings and some slices, on one page."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.cache.attributes import FORMAT
from pipeline.cache.commits import Commit
from pipeline.cache.documents import stored_array
from pipeline.cache.files import write_atomic
from pipeline.cache.paths import Cache
from pipeline.cache.shards import Codec
from pipeline.errors import CacheError
from pipeline.report.facts import Facts, Rejected, count_rejects, count_slices, find_prevalence
from pipeline.report.page import (
    Picture,
    Row,
    Section,
    Share,
    card,
    cards,
    chart,
    charts,
    page,
    paragraph,
    table,
    tables,
    tiles,
)
from pipeline.report.pictures import choose_slices, encode_png, read_row
from pipeline.report.scans import geometry, scanners
from pipeline.source.names import escaped
from pipeline.tables.tables import REJECTS
from pipeline.upkeep.info import require_head, summary
from pipeline.words import counted

MOST_COMMITS = 10
NO_DEVICE = "This is research software, not a medical device: it must not be used to diagnose or treat anyone."
FILES = {
    "gave_slices": "gave slices",
    "duplicates": "duplicates of a slice",
    "not_a_slice": "DICOM, but not a CT slice",
    "failed": "failed",
    "not_dicom": "not DICOM",
}
MISFITS = {
    "slices_without_label": "slices without a label",
    "labels_without_slice": "labelled images without a slice",
    "any_disagrees": "slices whose any disagrees with the other classes",
}


def write_report(cache: Cache, out: Path) -> None:
    """Write the report of the current commit.

    Args:
        cache: the cache.
        out: path of the HTML file.

    Raises:
        CacheError: the cache is missing, damaged or has no slices, or `out` cannot be written.
    """
    head = require_head(cache)
    if not head.attributes.num_slices:
        raise CacheError(f"{cache}: it has no slices to report on; run: pipeline build --src DICOMS --out {cache}")
    facts, about = count_slices(cache, head), summary(cache)
    sections = [
        _summary(head, facts, about),
        _slices(cache, head, facts),
        _labels(head, facts),
        scanners(facts),
        geometry(facts),
        _rejects(count_rejects(cache, head)),
        _storage(head, facts, about),
        _settings(head, facts),
    ]
    lead = f"Data set {head.terms.dataset}; commit {head.id} of {_shown_time(head.attributes.created)}."
    text = page(f"Head-CT cache {cache.root.resolve().name}", lead, sections, NO_DEVICE)
    try:
        write_atomic(out, text.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise CacheError(f"{out}: cannot be written ({error.strerror}); give another --out") from error


# --- sections ------------------------------------------------------------------------------------------------------


def _summary(head: Commit, facts: Facts, about: Mapping[str, Any]) -> Section:
    counts, slices = head.attributes.counts, facts.table
    on_disk = sum(about["bytes"].values())
    numbers = [
        (f"{len(slices):,}", "slices"),
        (f"{len(facts.series):,}", "series"),
        (f"{slices['study_instance_uid'].nunique():,}", "studies"),
        (f"{slices['patient_id'].nunique():,}", "patients"),
        (f"{counts['failed']:,}", "files failed"),
        (f"{on_disk / 1e6:,.1f} MB", "on disk, with all kept commits"),
    ]
    rows: list[Row] = [
        [words, f"{counts[kind]:,}", Share(counts[kind], counts["files"])] for kind, words in FILES.items()
    ]
    rows.append(["all files", f"{counts['files']:,}", ""])
    caption = "Every file of the source, counted once. A file gave slices if any of its frames did."
    blocks = [tiles(numbers), tables([table(caption, ["files", "number", "share"], rows)])]
    if left := about["unfinished"]:
        done = f"{left['done']:,} of {left['shards']:,} shards"
        words = f"A later build was interrupted after {done}; run it again."
        if running := about["running"]:
            words = f"A later build has finished {done}: {running}."
        blocks.append(paragraph(words, "notice"))
    return Section("Summary", blocks)


def _slices(cache: Cache, head: Commit, facts: Facts) -> Section:
    windows = [f"{w.name} ({w.level_hu:g}/{w.width_hu:g} HU)" for w in head.terms.windows]
    classes = head.terms.class_names
    items = []
    series = facts.series.to_dict("index")
    for uid, lines in choose_slices(facts.table):
        pictures = []
        for of in facts.table.loc[lines].to_dict("records"):
            image = read_row(cache, head, of["row"])  # (C, S, S)
            words = f"slice at z_norm {of['z_norm']:.2f}, windows from top to bottom: {', '.join(windows)}"
            png = encode_png(image.reshape(-1, image.shape[2]))
            findings = ", ".join(klass for klass in classes if of[klass] == 1 and klass != "any")
            pictures.append(Picture(png, words, f"{of['z_norm']:.2f} · row {of['row']}", findings))
        items.append(card(pictures, _series_words(series[uid])))
    caption = (
        "Series chosen at random, up to three slices of each from foot to head, with position (z_norm), row in the "
        f"cache, and findings according to the labels. Windows from top to bottom (level/width): {', '.join(windows)}."
    )
    return Section("Slices", [cards(items, caption)])


def _series_words(series: Mapping[Any, Any]) -> str:
    words = [counted(series["slices"], "slice")]
    low, high = series["spacing_min_mm"], series["spacing_max_mm"]
    if not np.isnan(low):
        words.append(f"{low:.1f} mm apart" if high - low < 0.1 else f"{low:.1f} to {high:.1f} mm apart")
    if not np.isnan(series["tilt_degrees"]):
        words.append(f"tilted by {series['tilt_degrees']:.1f} degrees")
    return "Series of " + ", ".join(words)


def _labels(head: Commit, facts: Facts) -> Section:
    classes, left = head.terms.classes, head.attributes.label_counts
    found = {klass.name: find_prevalence(facts.table, klass.name) for klass in classes}
    if not any(of.slices for of in found.values()):
        words = "No slice has a label. To add labels, run the same build with --labels; no image is converted again."
        return Section("Labels", [paragraph(words)])
    rows: list[Row] = [
        [
            name,
            f"{of.positive_slices:,} / {of.slices:,}",
            Share(of.positive_slices, of.slices),
            f"{of.positive_patients:,} / {of.patients:,}",
            Share(of.positive_patients, of.patients),
        ]
        for name, of in found.items()
    ]
    caption = (
        "Labelled slices and patients with the finding, and all labelled. A patient has it if any of their slices does."
    )
    head_row = ["class", "slices", "share of slices", "patients", "share of patients"]
    edges = np.linspace(0, 1, len(next(iter(found.values())).by_position) + 1)
    panels = [chart(name, edges, 100 * of.by_position, "z_norm, foot to head", " %") for name, of in found.items()]
    misfits: list[Row] = [[words, f"{left[name]:,}"] for name, words in MISFITS.items()]
    prevalence, other = (
        table(caption, head_row, rows),
        table("Labels and slices that do not match.", ["", "number"], misfits),
    )
    by_position = charts(panels, "Share of labelled slices with the finding at each position.")
    return Section("Labels", [tables([prevalence]), by_position, tables([other])])


def _rejects(found: Mapping[str, Rejected]) -> Section:
    if not found:
        return Section("Rejects", [paragraph("Every file gave a slice, and every frame of it.")])
    rows: list[Row] = [
        [
            f"{code}\n{FILES[REJECTS[code][0]]}",
            f"{of.lines:,}",
            "\n".join([REJECTS[code][1], *map(escaped, of.examples), *(["..."] if of.more else [])]),
        ]
        for code, of in found.items()
    ]
    caption = "Files and frames that gave no slice, by reason, with some paths. rejects.csv lists all, with messages."
    words = "Paths and file names may identify patients: treat this page like the files themselves."
    return Section("Rejects", [tables([table(caption, ["code", "number", "meaning"], rows, [2])]), paragraph(words)])


def _shown_time(utc: str) -> str:
    """Format an ISO 8601 time in UTC for people, without seconds."""
    return f"{utc[:10]} {utc[11:16]} UTC"


def _storage(head: Commit, facts: Facts, about: Mapping[str, Any]) -> Section:
    rows: list[Row] = []
    for spec in head.terms.arrays:
        size, array = str(spec.size_px), stored_array(head.arrays[spec.images_path])
        stored, codec = facts.storage[size], Codec.of(array)
        raw = stored.images * int(np.prod(array.shape))
        rows.append(
            [
                f"{size} x {size} px\n{spec.images_path}",
                f"{codec.name}, level {codec.level}",
                f"{stored.bytes / stored.images / 1000:.1f} kB",
                f"{raw / stored.images / 1000:.1f} kB",
                Share(stored.bytes, raw),
                f"{about['bytes'][size] / 1e6:,.1f} MB",
            ]
        )
    columns = ["size", "compression", "per slice", "uncompressed", "share of uncompressed", "on disk"]
    live = about["rows"]
    words = (
        f"{live['stored']:,} rows are stored, and {live['live']:,} of them are in the table. The other "
        f"{100 * live['dead_share']:.1f} % are dead: they belong to duplicates, or to files that were changed or "
        f"removed. {about['bytes']['unused'] / 1e6:,.1f} MB are in shards and arrays "
        "that this commit does not use; `pipeline gc` lists what can be removed."
    )
    commits: list[Row] = [
        [of["commit"], _shown_time(of["created"]), f"{of['slices']:,}"] for of in about["commits"][:MOST_COMMITS]
    ]
    caption = "Kept commits, newest first" + (
        f", {MOST_COMMITS} of them." if len(about["commits"]) > MOST_COMMITS else "."
    )
    return Section(
        "Storage",
        [
            tables([table("Images by size.", columns, rows)]),
            paragraph(words),
            tables([table(caption, ["commit", "created", "slices"], commits)]),
        ],
    )


def _settings(head: Commit, facts: Facts) -> Section:
    of, private = head.terms, head.private
    lines = {
        "source": private.source,
        "windows": "; ".join(f"{w.name}: level {w.level_hu:g}, width {w.width_hu:g} HU" for w in of.windows),
        "sizes": ", ".join(f"{spec.size_px} px" for spec in of.arrays),
        "classes and weights": ", ".join(f"{klass.name} {klass.weight:g}" for klass in of.classes) or "none",
        "splits": ", ".join(f"{subset} {share:g}" for subset, share in dataclasses.asdict(of.splits).items()),
        "rows in a shard": f"{of.rows_per_shard:,}",
        "image_id": private.image_id,
        **private.reading_settings,
        "versions": ", ".join(f"{library} {' and '.join(found)}" for library, found in facts.versions.items()),
        "table": f"tables/{head.attributes.table_digest}.csv",
        "format": f"{FORMAT} {head.attributes.format_version}",
    }
    rows: list[Row] = [[name.replace("_", " "), str(value)] for name, value in lines.items()]
    return Section("Settings", [tables([table("Settings of this commit.", ["setting", "value"], rows, [1])])])
