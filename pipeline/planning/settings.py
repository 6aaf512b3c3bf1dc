"""Merge the catalog, the options of a command and the previous choices of a cache into the settings of a build."""

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
    """The options of a command; those that are not given stay as the cache was built.

    Attributes:
        src: folder, archive or address of the DICOM files; None for that of the catalog.
        dataset: entry of the catalog; None for that of the cache, or `generic`.
        sizes, drop_sizes: image sizes in pixels to add and to remove.
        labels: path of a label file; None for that of the cache or the catalog.
        no_labels: whether to remove the labels.
    """

    src: str | None = None
    dataset: str | None = None
    sizes: tuple[int, ...] = ()
    drop_sizes: tuple[int, ...] = ()
    labels: str | None = None
    no_labels: bool = False


@dataclass(frozen=True, slots=True)
class Built:
    """The choices that a commit was built with.

    Attributes:
        dataset: entry of the catalog.
        sizes: image sizes in pixels.
        sizes_chosen, labels_chosen: whether they come from options, which take precedence over the catalog.
        classes: names of the classes.
        label_file: absolute path of the label file; "" without labels.
        labels_digest: SHA-256 (hex) of its content.
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
    """The labels of a build.

    Attributes:
        file: the format, and the path as messages print it; `filepath` is None without labels.
        digest: SHA-256 (hex) of the content; "" without labels.
        chosen: whether they come from `--labels` or `--no-labels`.
        content: of the file; None without labels, or if it has vanished and those of the commit are kept.
    """

    file: LabelFile
    digest: str
    chosen: bool
    content: bytes | None


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of one build, merged from the catalog, the options and the last commit.

    Attributes:
        src: folder, archive or address of the DICOM files.
        sizes: image sizes in pixels, ascending.
        sizes_chosen: whether the sizes come from options.
        patient_key_digest: digest of the key for hashing patient ids; "" if they are not hashed.
        kept: what is kept because the cache was built with it, in words.
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
class BuildOptions:
    """Options of one build that are not settings of the cache.

    Attributes:
        patient_key: key for hashing patient ids; None if they are not hashed.
        prune: whether to remove the slices of files that no longer exist.
        check_content, retry_rejected: see `survey`.
    """

    patient_key: bytes | None = field(default=None, kw_only=False, repr=False)
    prune: bool = False
    check_content: bool = False
    retry_rejected: bool = False


@dataclass(frozen=True, slots=True)
class Workers:
    """Where tasks run: in this process, in local processes, or on a Dask cluster.

    Attributes:
        local: number of local processes; 0 to use one of the next three, or a plain loop in this process.
        scheduler: address of a running Dask scheduler, or None.
        scheduler_file: file that a running scheduler has written its address to, or None.
        cluster: YAML file that describes a cluster to start, or None.
        report: output file for Dask's performance report, or None.
        dashboard: whether to serve Dask's dashboard, which every user of this machine can open.
        any_class: whether `cluster` may name any class, whose code is then run.
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
    """Return name and content of the requested catalog entry, or else that of the cache, or else `generic`.

    Raises:
        CatalogError: the catalog has no such entry.
    """
    name = request.dataset or (built.dataset if built else DEFAULT_DATASET)
    try:
        return name, catalog.dataset(name)
    except CatalogError as error:
        if request.dataset is None and built:
            raise CatalogError(f"the cache was built with {error}; give the --catalog that has it") from None
        raise


def make_settings(catalog: Catalog, request: Request, built: Built | None, key_digest: str) -> Settings:
    """Merge the catalog's entry, the options and the previous choices of the cache.

    Options take precedence over options of previous builds, and those over the catalog.

    Args:
        catalog: the catalog.
        request: the options.
        built: choices of the current commit; None before the first.
        key_digest: digest of the patient key; "" if ids are not hashed.

    Raises:
        CatalogError: there is no such entry, or a size is not possible.
        SourceError: there is no source, or the label file cannot be read.
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
    """Return the image sizes to build, and whether they come from options, now or in a previous build."""
    check_sizes(request.sizes)
    before = built is not None and built.sizes_chosen
    chosen = before or bool(request.sizes) or not set(request.drop_sizes).isdisjoint(entry.sizes)
    requested = request.sizes or (() if before else entry.sizes)
    wanted = {*requested, *(built.sizes if built else ())}
    for size_px in request.drop_sizes:
        if size_px not in wanted:
            existing = ", ".join(str(size) for size in sorted(wanted))
            raise CatalogError(f"--drop-size {size_px}: the cache does not have this size, but {existing}")
    left = wanted - set(request.drop_sizes)
    if not left:
        raise CatalogError("--drop-size: no size would be left; give --size for another one")
    return tuple(sorted(left)), chosen


def _kept_sizes(request: Request, entry: Dataset, built: Built | None, sizes: tuple[int, ...]) -> list[str]:
    requested = request.sizes or entry.sizes
    return [f"size {size} (--drop-size {size} removes it)" for size in sizes if built and size not in requested]


# --- labels --------------------------------------------------------------------------------------------------------


def _choose_labels(request: Request, entry: Dataset, built: Built | None) -> Labels:
    """Return the labels of, in this order, the options, previous options, the catalog, the commit."""
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
    """Return whether the label file of the commit no longer exists and there is no other."""
    return not path or (_is_same_path(path, known) and not Path(path).exists())


def _read(file: LabelFile, *, chosen: bool) -> Labels:
    """Read a label file.

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
    if labels.digest != built.labels_digest and _is_same_path(path, built.label_file):
        return [f"labels of {path}, which has changed"]
    return [] if path == entry.labels.filepath else [f"labels of {path} (--no-labels removes them)"]


def _is_same_path(path: str, other: str) -> bool:
    """Return whether two paths are equal once they are absolute and normalised."""
    return os.path.abspath(path) == os.path.abspath(other)
