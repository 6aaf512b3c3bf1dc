"""A cache is never built from its own files, and files of other programs in its folder are left alone."""

from pathlib import Path

import pytest

from pipeline.cache.paths import Cache
from pipeline.errors import SourceError
from pipeline.planning.survey import refuse_cache_in_source
from testkit.dicom_files import ct_file, gradient
from testkit.small import Small, run, write


def test_a_cache_inside_its_own_source_is_refused(tmp_path: Path) -> None:
    small = Small(tmp_path)
    write(small.src / "a.dcm", ct_file(gradient()))
    inside = small.src / "deep" / "cache.zarr"
    with pytest.raises(SourceError, match="lies inside --src"):
        refuse_cache_in_source(Cache(inside), str(small.src))
    (tmp_path / "link").symlink_to(small.src)
    with pytest.raises(SourceError, match="give a folder outside"):
        refuse_cache_in_source(Cache(inside), str(tmp_path / "link"))
    refuse_cache_in_source(small.cache, str(small.src))
    refuse_cache_in_source(Cache(inside), "s3://bucket/src")
    with pytest.raises(SourceError, match="lies inside --src"):
        refuse_cache_in_source(Cache(inside), small.src.as_uri())
    assert not inside.exists()


@pytest.mark.parametrize("to", ["the folder of the cache", "the cache", "a folder in it"])
def test_a_link_from_the_source_to_the_cache_is_refused_until_it_is_removed(tmp_path: Path, to: str) -> None:
    """Otherwise the cache would be built from its own files, and again by every build."""
    small = Small(tmp_path / "work")
    write(small.src / "a.dcm", ct_file(gradient()))
    write(tmp_path / "more" / "b.dcm", ct_file(gradient(), SOPInstanceUID="1.2.9"))
    (small.src / "more").symlink_to(tmp_path / "more")  # a link that is followed
    (small.src / "back").symlink_to(small.src)  # a link to a folder that was already listed
    target = {"the folder of the cache": small.folder, "the cache": small.out, "a folder in it": small.out / "tables"}[
        to
    ]
    if to == "a folder in it":
        small.build()
    (small.src / "more" / "link").symlink_to(target)
    [line] = small.build(code=1).stderr.splitlines()
    assert line.startswith(f"error: {small.src}/more/link: leads to the cache")
    (small.src / "more" / "link").unlink()
    small.build()
    assert "2 slices" in run("info", small.out).stdout


def test_another_programs_partial_files_are_left_alone(tmp_path: Path) -> None:
    small = Small(tmp_path)
    write(small.src / "a.dcm", ct_file(gradient()))
    small.build()
    others = [small.out / "rsync" / ".x.partial", small.out / "mine" / "deep" / ".y.0123abcd.partial"]
    own = [small.out / "images" / ".x.0123abcd.partial", small.out / ".zarr.json.0123abcd.partial"]
    for path in others + own:
        write(path, b"half")
    assert sorted(small.cache.partials()) == sorted(own)
    write(small.src / "b.dcm", ct_file(gradient(), SOPInstanceUID="1.2.9"))
    small.build()
    assert all(path.exists() for path in others)
    assert not any(path.exists() for path in own)
