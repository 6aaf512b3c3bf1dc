"""Metadata that zarr-python writes differently is not damage; metadata with another meaning is."""

import json

import pytest
import zarr

from testkit.small import Small, slice_bytes, write, write_slices


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Small:
    small = Small(tmp_path_factory.mktemp("original"))
    write_slices(small.src, range(5))
    small.build()
    return small


@pytest.fixture
def small(original, tmp_path) -> Small:
    return original.copy(tmp_path)


def test_metadata_rewritten_by_zarr_python_is_not_damage(small):
    before = {path: path.read_bytes() for path in small.out.rglob("zarr.json")}
    for path in small.out.glob("*/*/zarr.json"):
        array = zarr.open_array(path.parent, mode="r+")
        array.attrs.put(dict(array.attrs))
    zarr.consolidate_metadata(small.out)
    changed = [path for path, content in before.items() if path.read_bytes() != content]
    assert small.out / "zarr.json" in changed
    assert len(changed) >= 3
    small.verify()
    assert "nothing to do" in small.plan(code=0).stdout
    write(small.src / "new.dcm", slice_bytes(9))
    small.build()
    small.verify()


def test_equivalent_metadata_is_not_damage(small):
    """The keys have another order, and a default is left out."""
    for path in small.out.rglob("zarr.json"):
        document = json.loads(path.read_bytes())
        if document["node_type"] == "array":
            document.pop("storage_transformers")
        path.write_text(json.dumps(dict(reversed(document.items())), indent=3))
    small.verify()


@pytest.mark.parametrize(
    ("before", "after"),
    [("noshuffle", "bitshuffle"), ('"clevel":5', '"clevel":4'), ('"fill_value":0', '"fill_value":1')],
)
def test_metadata_with_another_meaning_is_damage(small, before, after):
    [array] = small.out.glob("images/*/zarr.json")
    for path in (small.out / "zarr.json", array):
        content = path.read_text()
        path.write_text(content.replace(before, after))
        assert path.read_text() != content
        assert f"{path.relative_to(small.out)}: does not match the commit" in small.verify(code=1).stdout
        path.write_text(content)
