"""Parse data_catalog.yaml into frozen, validated dataclasses."""

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import CatalogError
from pipeline.planning.yaml_text import read_yaml
from pipeline.planning.yaml_values import InvalidError, parse_value, short, suggest

LabelLevel = Literal["slice", "series", "study", "patient"]
DEFAULT_FILE = "data_catalog.yaml"
MAX_SIZE_PX = 4096
MAX_WINDOWS = 8  # so that a band of rows in all windows fits a core's cache
MAX_NAME_CHARACTERS = 100
TABLE_COLUMNS = (
    "row",
    "image_id",
    "sop_instance_uid",
    "patient_id",
    "study_instance_uid",
    "series_instance_uid",
    "frame",
    "z_mm",
    "z_norm",
)


def _is_valid_name(name: str) -> bool:
    """Return whether a name can be used in tables, figures and terminals."""
    return 0 < len(name) <= MAX_NAME_CHARACTERS and name.isprintable() and not set(name) & set(',"')


@dataclass(frozen=True, slots=True)
class Window:
    """A display range: [level - width/2, level + width/2] HU is mapped to [0, 1].

    Attributes:
        name: 1 to 100 printable characters, without commas and quotes.
        level_hu: centre of the range, HU.
        width_hu: width of the range, HU, above 0.
    """

    name: str
    level_hu: float
    width_hu: float

    def problem(self) -> str | None:
        """Return why the window is invalid, or None."""
        if not _is_valid_name(self.name):
            return f"{short(self.name)} is not a valid window name, choose another name"
        return None if self.width_hu > 0 else f"width_hu is {self.width_hu:g}, it must be above 0"


@dataclass(frozen=True, slots=True)
class ClassWeight:
    """A label class and its weight, above 0, in the loss and in the weighted log loss."""

    name: str
    weight: float = 1.0

    def problem(self) -> str | None:
        """Return why the class is invalid, or None."""
        if self.name in TABLE_COLUMNS or not _is_valid_name(self.name):
            return f"{short(self.name)} cannot be a column of the table, choose another class name"
        return None if self.weight > 0 else f"weight is {self.weight:g}, it must be above 0"


@dataclass(frozen=True, slots=True)
class LabelFile:
    """A label file and its format.

    Attributes:
        type: `rsna_long` (ID,Label), `wide` (one line per slice, series, ...), or None to infer it from the header.
        filepath: path of the file, or None without labels.
        level: what a label refers to; it applies to all slices of that.
        soft: whether labels between 0 and 1 are allowed, the share of readers who saw the class.
    """

    type: Literal["rsna_long", "wide"] | None = None
    filepath: str | None = None
    level: LabelLevel = "slice"
    soft: bool = False


@dataclass(frozen=True, slots=True)
class Splits:
    """Shares of the patients in each subset, 0 to 1; stored in the cache for training."""

    train: float = 0.7
    validation: float = 0.15
    test: float = 0.15

    def problem(self) -> str | None:
        """Return why the shares are invalid, or None."""
        shares = (self.train, self.validation, self.test)
        if min(shares) < 0 or abs(sum(shares) - 1) > 1e-9:
            return f"the shares are {', '.join(f'{s:g}' for s in shares)}, they must be 0 or more and add up to 1"
        return None


@dataclass(frozen=True, slots=True)
class Layout:
    """How arrays are stored. Compression changes no pixel and is part of no fingerprint, but rows_per_shard is.

    Attributes:
        rows_per_shard: 1 to 8192.
        compression_level: 1 to 9, or 1 to 22 for zstd; lz4 ignores it.
    """

    rows_per_shard: int = 256
    compression: Literal["lz4", "lz4hc", "zstd"] = "lz4"
    compression_level: int = 5

    def problem(self) -> str | None:
        """Return why the layout is invalid, or None."""
        if not 1 <= self.rows_per_shard <= 8192:
            return f"rows_per_shard is {self.rows_per_shard}, it must be 1 to 8192"
        highest = 22 if self.compression == "zstd" else 9
        if not 1 <= self.compression_level <= highest:
            return f"compression_level is {self.compression_level}, {self.compression} takes 1 to {highest}"
        return None


@dataclass(frozen=True, slots=True)
class Reading:
    """How DICOM files are read; part of the fingerprint of reading.

    Attributes:
        missing_rescale: reject frames without RescaleSlope or RescaleIntercept, or read them with 1 and 0.
        repair: `rsna_12bit_wrap` for `dicom.unwrap`, or none.
        patient_ids: hash PatientID with a key, or keep it.
    """

    missing_rescale: Literal["reject", "identity"] = "reject"
    repair: Literal["none", "rsna_12bit_wrap"] = "none"
    patient_ids: Literal["hash", "keep"] = "hash"


@dataclass(frozen=True, slots=True)
class Dataset:
    """One entry of the catalog.

    Attributes:
        filepath: the default source, or None.
        image_id: what identifies a slice in label files: its SOP Instance UID, or the name of its file without suffix.
        patient_ids, missing_rescale, repair: see `Reading`.
        windows, sizes: the catalog's if empty.
        metadata: further information, not used by the pipeline.
    """

    description: str
    classes: tuple[ClassWeight, ...]
    type: Literal["dicom"] = "dicom"
    filepath: str | None = None
    image_id: Literal["sop_instance_uid", "file_stem"] = "sop_instance_uid"
    patient_ids: Literal["hash", "keep"] = "hash"
    missing_rescale: Literal["reject", "identity"] = "reject"
    repair: Literal["none", "rsna_12bit_wrap"] = "none"
    labels: LabelFile = LabelFile()
    windows: tuple[Window, ...] = ()
    sizes: tuple[int, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def reading(self) -> Reading:
        return Reading(self.missing_rescale, self.repair, self.patient_ids)


@dataclass(frozen=True, slots=True)
class Catalog:
    """The content of the file. `windows` and `sizes` of an entry override the common ones."""

    windows: tuple[Window, ...]
    datasets: Mapping[str, Dataset]
    sizes: tuple[int, ...] = (224,)
    splits: Splits = Splits()
    layout: Layout = Layout()

    def dataset(self, name: str) -> Dataset:
        """Return the entry with this name, with the common windows and sizes filled in.

        Raises:
            CatalogError: there is none; the message suggests the closest name.
        """
        if name not in self.datasets:
            raise CatalogError(f"--dataset {name}: no such entry in the catalog{suggest(name, self.datasets)}")
        entry = self.datasets[name]
        return dataclasses.replace(entry, windows=entry.windows or self.windows, sizes=entry.sizes or self.sizes)


def load(path: Path | None) -> Catalog:
    """Read and check a catalog file: `path`, else ./data_catalog.yaml, else the copy in the package.

    Raises:
        CatalogError: the file cannot be read or is invalid; the message has the file, the key and the problem.
    """
    file = path or (Path(DEFAULT_FILE) if Path(DEFAULT_FILE).exists() else Path(__file__).parents[1] / DEFAULT_FILE)
    try:
        content = read_yaml(file)
    except OSError as error:
        raise CatalogError(f"{file}: cannot be read ({error.strerror}); give --catalog FILE") from error
    except ValueError as error:
        raise CatalogError(f"{file}: {error}") from error
    try:
        catalog = parse_value(Catalog, content, "")
        _check_windows_and_sizes(catalog.windows, catalog.sizes, "")
        for name, entry in catalog.datasets.items():
            _check_windows_and_sizes(entry.windows, entry.sizes, f"datasets.{name}.")
            _check_unique([c.name for c in entry.classes], f"datasets.{name}.classes")
    except InvalidError as error:
        raise CatalogError(f"{file}: {error}") from None
    return catalog


def check_sizes(sizes: tuple[int, ...]) -> None:
    """Raise a CatalogError for a size below 1 or above `MAX_SIZE_PX` pixels, or one that is given twice."""
    try:
        _check_sizes(sizes, "--size")
    except InvalidError as error:
        raise CatalogError(str(error)) from None


def _check_sizes(sizes: tuple[int, ...], key: str) -> None:
    for size_px in sizes:
        if not 1 <= size_px <= MAX_SIZE_PX:
            raise InvalidError(key, f"{size_px} pixels is not possible, give 1 to {MAX_SIZE_PX}, usually 224 or 380")
    _check_unique(sizes, key)


def _check_windows_and_sizes(windows: tuple[Window, ...], sizes: tuple[int, ...], prefix: str) -> None:
    if len(windows) > MAX_WINDOWS:
        raise InvalidError(f"{prefix}windows", f"{len(windows)} windows, at most {MAX_WINDOWS} are possible")
    _check_unique([w.name for w in windows], f"{prefix}windows")
    _check_sizes(sizes, f"{prefix}sizes")


def _check_unique(names: typing.Sequence[Any], key: str) -> None:
    seen = set()
    for name in names:
        if name in seen:
            raise InvalidError(key, f"{short(name)} is given twice")
        seen.add(name)
