"""Test that batches hold the data of each slice in order of z, and that the head uses all of it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from testkit.fake_cache import write_cache
from training.data.cache import Cache, open_cache
from training.data.neighbours import SeriesOrder
from training.run.config import TrainConfig
from training.series.batches import gaps_mm, gather, series_of
from training.series.features import Features
from training.series.head import SeriesBatch, SeriesHead

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """A cache of three patients; the second has two slices at one position, and one without a position."""
    opened = open_cache(write_cache(tmp_path_factory.mktemp("batches") / "cache.zarr", patients=3, slices=5).path)
    z_mm = opened.table["z_mm"].copy()
    z_mm[7], z_mm[9] = z_mm[6], np.nan
    return replace(
        opened, table=opened.table.assign(z_mm=z_mm).iloc[::-1].reset_index(drop=True), keys=opened.keys[::-1]
    )


def test_gaps_are_the_distances_to_the_next_slice_of_the_series() -> None:
    order = SeriesOrder(np.array([3, 0, 2, 1, 4, 5]), np.array([0, 3, 5, 6]), np.array([-5.0, 0, 0, 10, 70.5, 7]))
    assert gaps_mm(order).tolist() == [5, 0, 0, 60.5, 0, 0]


def test_each_place_of_a_batch_has_the_data_of_its_slice(cache: Cache) -> None:
    rng, lines = np.random.default_rng(0), np.arange(1, cache.num_slices)
    found = Features(lines, rng.random((len(lines), 4)).astype(np.float16), rng.random((len(lines), 2)).astype("f4"))
    order = series_of(cache, np.array([7, 12]))  # one line selects its complete series
    of = gather(cache, order, found)
    batch, which = of.batch(np.array([1, 0]), CPU)
    table = cache.table
    for b, t in enumerate((1, 0)):
        lines_of = order.lines[order.starts[t] : order.starts[t + 1]]
        patient = table["patient_id"][lines_of[0]]
        mine = table[(table["patient_id"] == patient) & table["z_mm"].notna()]
        wanted = sorted(mine.index, key=lambda line: (mine["z_mm"][line], cache.keys[line]))
        n = len(wanted)
        assert of.lines[which[b, :n]].tolist() == wanted
        assert (which[b, n:] == -1).all()
        assert batch.lengths[b] == n
        places = np.searchsorted(lines, wanted)
        assert np.array_equal(batch.features[b, :n], found.features[places].astype(np.float32))
        assert np.array_equal(batch.logits[b, :n], found.logits[places])
        assert np.array_equal(batch.z_norm[b, :n], table["z_norm"][wanted].to_numpy(np.float32))
        gaps = np.append(np.diff(table["z_mm"][wanted]), 0)
        np.testing.assert_allclose(batch.gap_mm[b, :n], gaps, rtol=1e-6)
    assert sorted(batch.lengths.tolist()) == [4, 5]


@pytest.mark.parametrize("name", ["features", "logits", "z_norm", "gap_mm"])
def test_the_head_uses_every_input(name: str) -> None:
    torch.manual_seed(0)
    net = SeriesHead(4, 2, TrainConfig(head="gru", head_features=16)).eval()
    torch.nn.init.normal_(net.correct.weight)
    batch = SeriesBatch(
        torch.rand(1, 3, 4), torch.rand(1, 3, 2), torch.rand(1, 3), 9 * torch.rand(1, 3), torch.tensor([3])
    )
    changed = getattr(batch, name).clone()
    changed[0, 1] += torch.linspace(1, 2, 4)[: changed[0, 1].numel()].reshape(changed[0, 1].shape)
    with torch.inference_mode():
        assert not torch.allclose(net(batch), net(replace(batch, **{name: changed})), atol=1e-4)


def test_gaps_over_50_mm_are_equivalent() -> None:
    net = SeriesHead(4, 2, TrainConfig(head="gru", head_features=16)).eval()
    torch.nn.init.normal_(net.correct.weight)
    others = torch.rand(1, 3, 4), torch.rand(1, 3, 2), torch.rand(1, 3)
    with torch.inference_mode():
        near, far, farther = (
            net(SeriesBatch(*others, torch.tensor([[gap, gap, 0.0]]), torch.tensor([3]))) for gap in (40.0, 50.0, 700.0)
        )
    assert torch.equal(far, farther)
    assert not torch.allclose(near, far, atol=1e-5)
