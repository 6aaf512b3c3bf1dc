"""Store in a commit the choices that it was built with, and read them for the next build."""

import dataclasses
import os

from pipeline.cache.attributes import Choices
from pipeline.cache.commits import Commit
from pipeline.planning.settings import Built, Settings


def choices(settings: Settings) -> Choices:
    """Return the choices that the private part of a commit stores and `built_with` reads."""
    path = settings.labels.file.filepath
    return Choices(
        sizes_chosen=settings.sizes_chosen,
        label_file=os.path.abspath(path) if path else "",
        labels_digest=settings.labels.digest,
        labels_chosen=settings.labels.chosen,
    )


def built_with(commit: Commit | None) -> Built | None:
    """Return what a commit was built with; None without a commit, or for format version 1, which did not store it."""
    if commit is None or commit.private.choices is None:
        return None
    return Built(
        dataset=commit.terms.dataset,
        sizes=tuple(spec.size_px for spec in commit.terms.arrays),
        classes=tuple(commit.terms.class_names),
        **dataclasses.asdict(commit.private.choices),
    )
