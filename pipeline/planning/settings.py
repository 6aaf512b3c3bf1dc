"""This file puts the catalog and a command's options together: what one build wants, and where it runs."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.cache.files import sha256
from pipeline.errors import SourceError
from pipeline.planning.catalog import Catalog, ClassWeight, LabelFile, Layout, Reading, Splits, Window, check_sizes


@dataclass(frozen=True, slots=True)
class Settings:
    """What one build wants, the catalog and the options put together.

    Attributes:
        src: folder, archive or address of the DICOM files.
        labels: label file and its format; `filepath` None where there are no labels.
        labels_digest: SHA-256 of the label file's content, "" without one.
        patient_key_digest: fingerprint of the key that patient ids are hashed with, "" where they are kept.
    """

    src: str
    dataset: str
    reading: Reading
    windows: tuple[Window, ...]
    sizes: tuple[int, ...]
    classes: tuple[ClassWeight, ...]
    image_id: str
    labels: LabelFile
    labels_digest: str
    patient_key_digest: str
    splits: Splits
    layout: Layout


@dataclass(frozen=True, slots=True)
class Workers:
    """Where tasks run: in this process, in local ones, or on a Dask cluster.

    Attributes:
        local: local processes; 0 where one of the next three says where, or for a plain loop in this process.
        scheduler: address of a running Dask scheduler, or None.
        scheduler_file: the file in which a running scheduler left its address, or None.
        cluster: YAML file that describes a cluster to start, or None.
        report: file for Dask's performance report, or None.
    """

    local: int
    scheduler: str | None = None
    scheduler_file: Path | None = None
    cluster: Path | None = None
    report: Path | None = None

    @property
    def in_process(self) -> bool:
        return not (self.local or self.scheduler or self.scheduler_file or self.cluster)


def make_settings(
    catalog: Catalog, dataset: str, src: str, labels: LabelFile, content: bytes, sizes: tuple[int, ...], key_digest: str
) -> Settings:
    """Put a catalog entry and the options that override it together.

    Args:
        content: of the label file, b"" where there is none.
        sizes: empty for the entry's own.
        key_digest: of the patient key, "" where ids are kept.

    Raises:
        CatalogError: no such entry, impossible sizes.
    """
    entry = catalog.dataset(dataset)
    check_sizes(sizes)
    return Settings(
        src=src,
        dataset=dataset,
        reading=entry.reading,
        windows=entry.windows,
        sizes=tuple(sorted(sizes or entry.sizes)),
        classes=entry.classes,
        image_id=entry.image_id,
        labels=labels,
        labels_digest=sha256(content) if content else "",
        patient_key_digest=key_digest,
        splits=catalog.splits,
        layout=catalog.layout,
    )


def read_label_file(labels: LabelFile) -> bytes:
    """The content of the label file, b"" where there is none.

    Raises:
        SourceError: it cannot be read.
    """
    if labels.filepath is None:
        return b""
    try:
        return Path(labels.filepath).read_bytes()
    except OSError as error:
        raise SourceError(f"{labels.filepath}: cannot be read ({error.strerror}); give --labels FILE") from error
