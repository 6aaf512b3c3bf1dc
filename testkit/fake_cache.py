"""Write a small valid cache with plain zarr-python, according to docs/cache_format.md and without `pipeline`."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

CLASSES = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any")
WINDOWS = (("brain", 40.0, 80.0), ("subdural", 50.0, 130.0), ("bone", 600.0, 2800.0))
COMPRESSORS = {
    "lz4": BloscCodec(cname="lz4", clevel=5, shuffle="noshuffle", typesize=1),
    "lz4hc": BloscCodec(cname="lz4hc", clevel=9, shuffle="noshuffle", typesize=1),
    "zstd": ZstdCodec(level=1),
}
CACHE = "00c0ffee" * 4


@dataclass(frozen=True)
class FakeCache:
    """A cache on disk and its expected content.

    Attributes:
        path: its folder.
        table: metadata.csv, N lines.
        images: size -> (N, C, S, S) uint8, in the order of the table, not of rows.
    """

    path: Path
    table: pd.DataFrame
    images: dict[int, np.ndarray]


def write_cache(
    path: Path,
    *,
    patients: int = 8,
    slices: int = 5,
    sizes: tuple[int, ...] = (32,),
    classes: tuple[str, ...] = CLASSES,
    unlabelled: int = 0,
    z: bool = True,
    rows_per_shard: int = 8,
    compressor: str = "lz4",
    seed: int = 0,
    row_seed: int = 0,
    windows: tuple[tuple[str, float, float], ...] = WINDOWS,
    label_level: str = "slice",
) -> FakeCache:
    """Write a cache of patients x slices slices, with one series per patient.

    A label of class k appears as a bright square at a position of its own, so that a model can learn it. Rows are in
    pseudo-random order with holes; rows that are not in the table have noise or nothing.

    Args:
        path: folder of the cache.
        unlabelled: number of lines at the start of the table without labels.
        z: whether z_mm is known, or only the order.
        seed: of the content.
        row_seed: of the order of rows, which has no meaning.
    """
    rng = np.random.default_rng(seed)
    table = make_table(rng, patients, slices, classes, unlabelled)
    if not z:
        table["z_mm"] = np.nan
    capacity = -(-(len(table) * 4 // 3) // rows_per_shard) * rows_per_shard
    table["row"] = np.random.default_rng(row_seed).permutation(capacity)[: len(table)]
    if label_level != "slice":  # a patient has one series
        table[list(classes)] = table.groupby("patient_id")[list(classes)].transform("max")
    labels = table[list(classes)].to_numpy(float) if classes else np.zeros((len(table), 0))
    images = {size: _images(np.random.default_rng((seed, size)), labels, size, len(windows)) for size in sizes}

    zarr.create_group(path)
    for size in sizes:
        stored = np.random.default_rng(1).integers(0, 256, (capacity, len(windows), size, size), np.uint8)
        stored[table["row"]] = images[size]
        write_arrays(path, size, stored, rows_per_shard, compressor)
    commit_table(path, table, classes, windows, sizes, rows_per_shard)
    if label_level != "slice":
        relabel(FakeCache(path, table, images), {}, label_level=label_level)
    return FakeCache(path, table, images)


def make_table(
    rng: np.random.Generator, patients: int, slices: int, classes: tuple[str, ...], unlabelled: int
) -> pd.DataFrame:
    """Make the table of patients x slices slices, with rows still 0; half of them have the finding of their patient."""
    lines: list[dict[str, Any]] = []
    for patient in range(patients):
        study, series = (f"ID_{rng.integers(1 << 40):010x}" for _ in range(2))
        for position in range(slices):
            uid = f"ID_{rng.integers(1 << 36):09x}"
            findings = dict.fromkeys(classes, 0)
            if classes and rng.random() < 0.5:
                findings[classes[patient % max(1, len(classes) - 1)]] = 1
                findings[classes[-1]] = 1
            lines.append(
                {
                    "row": 0,
                    "image_id": uid,
                    "sop_instance_uid": uid,
                    "patient_id": f"ID_{patient:08x}",
                    "study_instance_uid": study,
                    "series_instance_uid": series,
                    "frame": 0,
                    "z_mm": -100.0 + 5.1 * position,
                    "z_norm": position / (slices - 1) if slices > 1 else 0.5,
                    **findings,
                }
            )
    table = pd.DataFrame(lines)
    table[list(classes)] = table[list(classes)].astype("Int8")
    table.loc[: unlabelled - 1, list(classes)] = pd.NA
    return table


def _images(rng: np.random.Generator, labels: np.ndarray, size: int, channels: int) -> np.ndarray:
    images = rng.integers(40, 90, (len(labels), channels, size, size), np.uint8)
    images[:, :, :2, :] = 0  # air, so that chunks compress
    side = size // 4
    for k in range(labels.shape[1]):
        top, left = 1 + side * (k // 3), 1 + side * (k % 3)
        images[labels[:, k] == 1, :, top : top + side, left : left + side] = 230
    images[0] = 0  # in the format, a live row of zeros has a stored chunk too
    return images


def create_arrays(path: Path, size: int, rows: int, channels: int, rows_per_shard: int, compressor: str) -> Any:
    """Create the empty arrays of one size in an existing group: images (rows, C, S, S) and sums (rows, C, 2)."""
    images = zarr.create_array(
        path,
        name=f"images/{size}-0badcafe",
        shape=(rows, channels, size, size),
        dtype="uint8",
        chunks=(1, channels, size, size),
        shards=(rows_per_shard, channels, size, size),
        compressors=[COMPRESSORS[compressor], Crc32cCodec()],
        fill_value=0,
        config={"write_empty_chunks": True},
    )
    sums = zarr.create_array(
        path,
        name=f"sums/{size}-0badcafe",
        shape=(rows, channels, 2),
        dtype="uint64",
        chunks=(rows_per_shard, channels, 2),
        compressors=[Crc32cCodec()],
        fill_value=0,
        config={"write_empty_chunks": True},
    )
    return images, sums


def write_arrays(path: Path, size: int, stored: np.ndarray, rows_per_shard: int, compressor: str) -> None:
    """Write the images of one size, (rows, C, S, S), and their sums to an existing group."""
    images, sums = create_arrays(path, size, len(stored), stored.shape[1], rows_per_shard, compressor)
    images[:] = stored
    sums[:] = sums_of(stored)


def sums_of(images: np.ndarray) -> np.ndarray:
    """Return the sums of grey levels and of their squares, (n, C, 2) uint64, of images (n, C, S, S) uint8."""
    wide = images.reshape(*images.shape[:2], -1).astype(np.uint64)
    return np.stack([wide.sum(-1), (wide**2).sum(-1)], axis=-1)


def commit_table(
    path: Path,
    table: pd.DataFrame,
    classes: tuple[str, ...],
    windows: tuple[tuple[str, float, float], ...],
    sizes: tuple[int, ...],
    rows_per_shard: int,
) -> None:
    """Write table, attributes and commit for existing arrays, which makes them a cache."""
    text = table.to_csv(index=False, lineterminator="\n").encode()
    digest = hashlib.sha256(text).hexdigest()
    attributes: dict[str, Any] = {
        "format": "ich-slices",
        "format_version": 2,
        "cache": CACHE,
        "sequence": 1,
        "commit": "",
        "created": "2026-01-01T00:00:00Z",
        "dataset": "fake",
        "windows": [{"name": name, "level_hu": level, "width_hu": width} for name, level, width in windows],
        "sizes": {str(size): f"images/{size}-0badcafe" for size in sizes},
        "sums": {str(size): f"sums/{size}-0badcafe" for size in sizes},
        "classes": [{"name": name, "weight": 2.0 if name == "any" else 1.0} for name in classes],
        "splits": {"train": 0.7, "validation": 0.15, "test": 0.15},
        "rows_per_shard": rows_per_shard,
        "num_slices": len(table),
        "metadata": {"file": f"tables/{digest}.csv", "digest": digest},
        "counts": {
            "files": len(table),
            "gave_slices": len(table),
            "duplicates": 0,
            "not_a_slice": 0,
            "failed": 0,
            "not_dicom": 0,
        },
        "label_counts": {"slices_without_label": 0, "labels_without_slice": 0, "any_disagrees": 0},
    }
    for folder in ("tables", "commits", ".pipeline"):
        (path / folder).mkdir()
    (path / "tables" / f"{digest}.csv").write_bytes(text)
    (path / "metadata.csv").write_bytes(text)
    arrays = {
        name: json.loads((path / name / "zarr.json").read_text())
        for size in sizes
        for name in (f"images/{size}-0badcafe", f"sums/{size}-0badcafe")
    }
    _write_commit(path, {"attributes": attributes, "arrays": arrays, "private": None})


def _write_commit(path: Path, commit: dict[str, Any]) -> str:
    """Write a commit, with the id of its content as in docs/cache_format.md, and the root attributes; return the id."""
    attributes = {key: value for key, value in commit["attributes"].items() if key != "commit"}
    content = [attributes, commit["arrays"], commit["private"]]
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True) + "\n"
    attributes["commit"] = hashlib.sha256(text.encode()).hexdigest()[:16]
    (path / "commits" / f"{attributes['commit']}.json").write_text(json.dumps(commit | {"attributes": attributes}))
    nodes = {folder: {"zarr_format": 3, "node_type": "group", "attributes": {}} for folder in ("images", "sums")}
    consolidated = {"kind": "inline", "must_understand": False, "metadata": nodes | commit["arrays"]}
    root = {"zarr_format": 3, "node_type": "group", "attributes": attributes, "consolidated_metadata": consolidated}
    (path / "zarr.json").write_text(json.dumps(root))
    return str(attributes["commit"])


def recommit(path: Path, change: Callable[[dict[str, Any]], object]) -> str:
    """Copy the current commit, change its attributes, arrays or private part, make it current, and return its id."""
    commit = json.loads((path / "commits" / f"{current(path)}.json").read_text())
    change(commit)
    return _write_commit(path, commit)


def current(path: Path) -> str:
    """Return the id of the current commit."""
    return str(json.loads((path / "zarr.json").read_text())["attributes"]["commit"])


def plant(fake: FakeCache, to_line: int, image: np.ndarray, size: int = 32) -> None:
    """Replace the pixels of a line, (C, S, S) uint8, and their sums."""
    row = int(fake.table["row"].iloc[to_line])
    group = zarr.open_group(fake.path, mode="r+")
    group[f"images/{size}-0badcafe"][row] = image  # type: ignore[index]
    wide = image.reshape(len(image), -1).astype(np.uint64)
    group[f"sums/{size}-0badcafe"][row] = np.stack([wide.sum(-1), (wide**2).sum(-1)], axis=-1)  # type: ignore[index]


def relabel(fake: FakeCache, values: dict[tuple[int, str], float], **attributes: str) -> None:
    """Change labels, by line and class, and attributes, in a new commit."""
    for (line, name), value in values.items():
        fake.table[name] = fake.table[name].astype("Float64")
        fake.table.loc[line, name] = value
    text = fake.table.to_csv(index=False, lineterminator="\n").encode()
    digest = hashlib.sha256(text).hexdigest()
    (fake.path / "tables" / f"{digest}.csv").write_bytes(text)
    metadata = {"file": f"tables/{digest}.csv", "digest": digest}
    recommit(fake.path, lambda commit: commit["attributes"].update(metadata=metadata, **attributes))
