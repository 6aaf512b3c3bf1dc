"""Merge the catalog, a command's options and what the cache was built with into what one build wants."""

import os
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipeline.cache.files import sha256
from pipeline.errors import CatalogError, SourceError
from pipeline.planning.catalog import (
    Catalog,
    ClassWeight,
    Dataset,
    LabelFile,
    Layout,
    Reading,
    Splits,
    Window,
    check_sizes,
)

DEFAULT_DATASET = "generic"


@dataclass(frozen=True, slots=True)
class Request:
    """What the options of a command ask for; what they leave out stays as the cache was built with.

    Attributes:
        sizes, drop_sizes: image sides to add, and to take away.
        labels: label file; None for that of the commit, or of the catalog.
        no_labels: take the labels away.
    """

    src: str | None = None
    dataset: str | None = None
    sizes: tuple[int, ...] = ()
    drop_sizes: tuple[int, ...] = ()
    labels: str | None = None
    no_labels: bool = False


@dataclass(frozen=True, slots=True)
class Built:
    """What a commit was built with, as its private part keeps it.

    Attributes:
        label_file: full path of the label file, "" without labels.
        labels_digest: SHA-256 of its content.
        labels_chosen, sizes_chosen: whether options said so; the catalog's words come after those.
    """

    dataset: str
    sizes: tuple[int, ...]
    sizes_chosen: bool
    classes: tuple[str, ...]
    label_file: str
    labels_digest: str
    labels_chosen: bool


@dataclass(frozen=True, slots=True)
class Labels:
    """The labels that a build wants.

    Attributes:
        file: the format, and the path as messages name it; `filepath` None where no labels are wanted.
        digest: SHA-256 of the content, "" without labels.
        chosen: whether an option said so, `--labels` or `--no-labels`.
        content: of the file; None where it has vanished and the labels of the commit stay.
    """

    file: LabelFile
    digest: str
    chosen: bool
    content: bytes | None


@dataclass(frozen=True, slots=True)
class Settings:
    """What one build wants, the catalog, the options and the last commit put together.

    Attributes:
        src: folder, archive or address of the DICOM files.
        patient_key_digest: fingerprint of the key that patient ids are hashed with, "" where they are kept.
        sizes_chosen: whether the sizes go back to options.
        kept: what stays because the cache was built with it, in plain words.
    """

    src: str
    dataset: str
    reading: Reading
    windows: tuple[Window, ...]
    sizes: tuple[int, ...]
    sizes_chosen: bool
    classes: tuple[ClassWeight, ...]
    image_id: str
    labels: Labels
    patient_key_digest: str
    splits: Splits
    layout: Layout
    kept: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """How one command goes about its build; nothing of it is part of what the cache is to be.

    Attributes:
        patient_key: that patient ids are hashed with, None where they are kept.
        prune: whether slices of files that are gone may leave.
        check_content, retry_rejected: as `survey` takes them.
    """

    patient_key: bytes | None = field(default=None, kw_only=False, repr=False)
    prune: bool = False
    check_content: bool = False
    retry_rejected: bool = False


@dataclass(frozen=True, slots=True)
class Workers:
    """Where tasks run: in this process, in local ones, or on a Dask cluster.

    Attributes:
        local: local processes; 0 where one of the next three says where, or for a plain loop in this process.
        scheduler: address of a running Dask scheduler, or None.
        scheduler_file: the file in which a running scheduler left its address, or None.
        cluster: YAML file that describes a cluster to start, or None.
        report: file for Dask's performance report, or None.
        dashboard: whether local processes serve Dask's pages, to anybody on this machine.
        any_class: whether `cluster` may name any class, which runs as code.
    """

    local: int
    scheduler: str | None = None
    scheduler_file: Path | None = None
    cluster: Path | None = None
    report: Path | None = None
    dashboard: bool = False
    any_class: bool = False

    @property
    def in_process(self) -> bool:
        return not (self.local or self.scheduler or self.scheduler_file or self.cluster)


def find_dataset(catalog: Catalog, request: Request, built: Built | None) -> tuple[str, Dataset]:
    """The catalog's entry that the options name, else the one that the cache was built with, else `generic`.

    Raises:
        CatalogError: no such entry.
    """
    name = request.dataset or (built.dataset if built else DEFAULT_DATASET)
    try:
        return name, catalog.dataset(name)
    except CatalogError as error:
        if request.dataset is None and built:
            raise CatalogError(f"the cache was built with {error}; give the --catalog that has it") from None
        raise


def make_settings(catalog: Catalog, request: Request, built: Built | None, key_digest: str) -> Settings:
    """Put the catalog's entry, the options and what the cache was built with together.

    Options come first, then what options have said before, then the catalog.

    Args:
        built: None before the first commit.
        key_digest: of the patient key, "" where ids are kept.

    Raises:
        CatalogError: no such entry, impossible sizes.
        SourceError: no source, or the label file cannot be read.
    """
    name, entry = find_dataset(catalog, request, built)
    src = request.src or entry.filepath
    if src is None:
        raise SourceError(f"the catalog's entry {name} has no filepath; give --src DICOMS")
    sizes, chosen = _choose_sizes(request, entry, built)
    labels = _choose_labels(request, entry, built)
    kept = []
    if built and request.dataset is None and name != DEFAULT_DATASET:
        kept.append(f"data set {name}")
    kept += _kept_sizes(request, entry, built, sizes) + _kept_labels(request, entry, built, labels)
    return Settings(
        src=src,
        dataset=name,
        reading=entry.reading,
        windows=entry.windows,
        sizes=sizes,
        sizes_chosen=chosen,
        classes=entry.classes,
        image_id=entry.image_id,
        labels=labels,
        patient_key_digest=key_digest,
        splits=catalog.splits,
        layout=catalog.layout,
        kept=tuple(kept),
    )


# --- sizes ---------------------------------------------------------------------------------------------------------


def _choose_sizes(request: Request, entry: Dataset, built: Built | None) -> tuple[tuple[int, ...], bool]:
    """The image sides that are wanted, and whether options said so, now or before."""
    check_sizes(request.sizes)
    before = built is not None and built.sizes_chosen
    chosen = before or bool(request.sizes) or not set(request.drop_sizes).isdisjoint(entry.sizes)
    asked = request.sizes or (() if before else entry.sizes)
    wanted = {*asked, *(built.sizes if built else ())}
    for size_px in request.drop_sizes:
        if size_px not in wanted:
            there = ", ".join(str(size) for size in sorted(wanted))
            raise CatalogError(f"--drop-size {size_px}: the cache is not built at that size, but at {there}")
    left = wanted - set(request.drop_sizes)
    if not left:
        raise CatalogError("--drop-size: no size would be left; give --size for another one")
    return tuple(sorted(left)), chosen


def _kept_sizes(request: Request, entry: Dataset, built: Built | None, sizes: tuple[int, ...]) -> list[str]:
    asked = request.sizes or entry.sizes
    return [f"size {size} (--drop-size {size} removes it)" for size in sizes if built and size not in asked]


# --- labels --------------------------------------------------------------------------------------------------------


def _choose_labels(request: Request, entry: Dataset, built: Built | None) -> Labels:
    """The label file that is wanted: of the options, of earlier options, of the catalog, of the commit."""
    known, chosen = (built.label_file, built.labels_chosen) if built else ("", False)
    if request.labels:
        return _read(replace(entry.labels, filepath=request.labels), chosen=True)
    if request.no_labels or (chosen and not known):
        return Labels(replace(entry.labels, filepath=None), "", chosen=True, content=None)
    path = known if chosen else entry.labels.filepath or known
    if built and built.classes and _has_vanished(path, known):
        named = replace(entry.labels, filepath=path or "the commit's labels")
        return Labels(named, built.labels_digest, chosen, None)
    file = replace(entry.labels, filepath=path or None)
    return _read(file, chosen=chosen) if path else Labels(file, "", chosen=False, content=None)


def _has_vanished(path: str, known: str) -> bool:
    """Whether this is the file that the commit's labels came from, and is gone."""
    return not path or (_are_same(path, known) and not Path(path).exists())


def _read(file: LabelFile, *, chosen: bool) -> Labels:
    """The labels of a file.

    Raises:
        SourceError: it cannot be read.
    """
    assert file.filepath
    try:
        content = Path(file.filepath).read_bytes()
    except OSError as error:
        raise SourceError(f"{file.filepath}: cannot be read ({error.strerror}); give --labels FILE") from error
    return Labels(file, sha256(content), chosen, content)


def _kept_labels(request: Request, entry: Dataset, built: Built | None, labels: Labels) -> list[str]:
    path = labels.file.filepath
    if not built or path is None or request.labels:
        return []
    if labels.content is None:
        return [f"the commit's labels, though their file {path} is gone (--labels FILE or --no-labels changes that)"]
    if labels.digest != built.labels_digest and _are_same(path, built.label_file):
        return [f"labels of {path}, which has changed"]
    return [] if path == entry.labels.filepath else [f"labels of {path} (--no-labels removes them)"]


def _are_same(path: str, other: str) -> bool:
    """Whether two paths name one file, as far as their text tells."""
    return os.path.abspath(path) == os.path.abspath(other)
