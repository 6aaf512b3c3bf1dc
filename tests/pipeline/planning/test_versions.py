"""The version and the settings of a stage are part of its fingerprint, but not of earlier ones."""

import dataclasses
from collections.abc import Callable

import pytest

from pipeline.planning import stages
from pipeline.planning.catalog import LabelFile, Reading, Window, load
from pipeline.planning.settings import Labels, Request, Settings, make_settings
from pipeline.planning.stages import Fingerprints, fingerprints


def settings(**changes: object) -> Settings:
    made = make_settings(load(None), Request("dicoms", "rsna", (224, 380)), None, "")
    labels = Labels(LabelFile(filepath="labels.csv"), "digest", True, b"")
    return dataclasses.replace(made, **{"labels": labels, **changes})


def parts(found: Fingerprints) -> dict[str, object]:
    return {"reading": found.reading, "arrays": found.arrays, "table": found.table}


def changed(found: Fingerprints) -> set[str]:
    """Return which parts differ from those of the default settings."""
    plain = parts(fingerprints(settings()))
    return {name for name, value in parts(found).items() if value != plain[name]}


@pytest.mark.parametrize(
    ("version", "where"),
    [
        ("READ_VERSION", {"reading", "arrays"}),
        ("RENDER_VERSION", {"arrays"}),
        ("SERIES_VERSION", {"table"}),
        ("LABELS_VERSION", {"table"}),
    ],
)
@pytest.mark.parametrize("step", [1, -1])
def test_a_version_changes_the_fingerprint_of_its_stage(monkeypatch, version, where, step):
    plain = parts(fingerprints(settings()))
    monkeypatch.setattr(stages, version, getattr(stages, version) + step)
    moved = parts(fingerprints(settings()))
    assert {name for name in plain if plain[name] != moved[name]} == where


@pytest.mark.parametrize(
    ("make", "where"),
    [
        (lambda s: {"reading": Reading("identity")}, {"reading", "arrays"}),
        (lambda s: {"patient_key_digest": "k"}, {"reading", "arrays"}),
        (lambda s: {"layout": dataclasses.replace(s.layout, rows_per_shard=8)}, {"reading", "arrays"}),
        (lambda s: {"layout": dataclasses.replace(s.layout, compression="zstd")}, set()),
        (lambda s: {"windows": (Window("w", 1, 2),)}, {"arrays"}),
        (lambda s: {"sizes": (224,)}, {"arrays"}),
        (lambda s: {"classes": s.classes[:2]}, {"table"}),
        (lambda s: {"image_id": "file_stem"}, {"table"}),
        (lambda s: {"dataset": "other"}, {"table"}),
        (lambda s: {"labels": dataclasses.replace(s.labels, digest="other")}, {"table"}),
        (lambda s: {"labels": dataclasses.replace(s.labels, file=LabelFile(None, "labels.csv", "study"))}, {"table"}),
        (lambda s: {"labels": dataclasses.replace(s.labels, file=LabelFile(None, "labels.csv", soft=True))}, {"table"}),
        (lambda s: {"labels": dataclasses.replace(s.labels, file=LabelFile(None, "moved.csv"))}, set()),
        (lambda s: {"src": "moved"}, set()),
        (lambda s: {"kept": ("said",), "sizes_chosen": False}, set()),
    ],
    ids=range(15),
)
def test_a_setting_changes_the_fingerprint_of_its_stage(make: Callable, where: set[str]):
    assert changed(fingerprints(settings(**make(settings())))) == where
