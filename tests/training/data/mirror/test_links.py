"""Test that copies are never written outside their folder, even if somebody has put links there."""

from pathlib import Path

import pytest

from testkit.fake_cache import write_cache
from training.data.cache import open_cache
from training.errors import CacheError


def copied_folder(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A cache, the copy of its table, and the folder of the copies."""
    cache = write_cache(tmp_path / "cache.zarr", patients=2).path
    open_cache(cache, local_copy=tmp_path / "copies")
    (folder,) = (tmp_path / "copies").glob("cache.zarr-*/tables")
    return cache, tmp_path / "copies", folder


def test_a_link_in_place_of_a_partial_copy_is_not_followed(tmp_path: Path) -> None:
    cache, copies, tables = copied_folder(tmp_path)
    (table,) = tables.iterdir()
    victim = tmp_path / "victim"
    victim.write_text("mine")
    table.unlink()
    (tables / f".{table.name}.partial").symlink_to(victim)
    with pytest.raises(CacheError, match=r"cannot be written .*; free up space or choose another --local-copy"):
        open_cache(cache, local_copy=copies)
    assert victim.read_text() == "mine"


def test_a_linked_folder_of_copies_is_not_written_to(tmp_path: Path) -> None:
    cache, copies, tables = copied_folder(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    for table in tables.iterdir():
        table.unlink()
    tables.rmdir()
    tables.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CacheError, match="tables is a link"):
        open_cache(cache, local_copy=copies)
    assert list((tmp_path / "elsewhere").iterdir()) == []
