"""Array paths of any other form are refused, both when they are read and when they are joined."""

import pytest

from pipeline.cache.arrays import new_array_metadata
from pipeline.cache.documents import stored_array, zarr_documents
from pipeline.cache.paths import Cache
from pipeline.cache.shards import Codec
from pipeline.planning.stages import ArrayPath, ArraySpec

WRONG = (
    "",
    "../x",
    "images/../x",
    "images/8-../../x",
    "/images/8-0123abcd",
    "images/8-0123abcd/x",
    "tables/8-0123abcd",
)


@pytest.mark.parametrize("text", WRONG)
def test_a_path_of_any_other_form_is_refused(text, tmp_path):
    with pytest.raises(ValueError, match="is not an array's path"):
        ArraySpec.of_path(text)
    with pytest.raises(ValueError, match="is not an array's path"):
        Cache(tmp_path).document(text)
    with pytest.raises(ValueError, match="is not an array's path"):
        zarr_documents({}, {text: {}})


def test_the_paths_of_an_array_have_the_required_form():
    spec = ArraySpec(8, "0123abcd")
    assert [type(path) for path in (spec.images_path, spec.sums_path)] == [ArrayPath, ArrayPath]
    assert ArraySpec.of_path(spec.sums_path) == spec


@pytest.mark.parametrize("settings", [{"clevel": []}, {"level": "1"}, {"cname": 4}, {"clevel": None}])
def test_a_compressor_setting_of_the_wrong_type_is_refused(settings):
    spec = ArraySpec(8, "0123abcd")
    document = new_array_metadata(spec, 3, 8, 8, Codec("lz4", 5))[spec.images_path]
    assert stored_array(document).shape == (3, 8, 8)
    document["codecs"][0]["configuration"]["codecs"][1]["configuration"] |= settings
    with pytest.raises(ValueError, match="not an image array of this format"):
        stored_array(document)
