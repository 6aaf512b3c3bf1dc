"""This file keeps in a commit what it was built with, and reads it again for the next build."""

import os
from typing import Any

from pipeline.cache.commits import Commit
from pipeline.planning.settings import Built, Settings


def choices(settings: Settings) -> dict[str, Any]:
    """What the private part of a commit keeps of the choices behind it; `built_with` reads it."""
    path = settings.labels.file.filepath
    return {
        "sizes_chosen": settings.sizes_chosen,
        "label_file": os.path.abspath(path) if path else "",
        "labels_digest": settings.labels.digest,
        "labels_chosen": settings.labels.chosen,
    }


def built_with(commit: Commit | None) -> Built | None:
    """What a commit was built with, None before the first."""
    if commit is None:
        return None
    attributes, kept = commit.attributes, commit.private["choices"]
    return Built(
        dataset=attributes["dataset"],
        sizes=tuple(int(size) for size in attributes["sizes"]),
        classes=tuple(klass["name"] for klass in attributes["classes"]),
        **kept,
    )
