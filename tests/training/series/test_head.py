"""Test that an untrained head changes nothing, and that neither padding nor the rest of a batch matters."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from training.data.neighbours import SeriesOrder
from training.run.config import TrainConfig
from training.series.batches import SeriesSet, in_blocks
from training.series.head import SeriesBatch, SeriesHead
from training.series.predict import corrections

D, K = 12, 6
CPU = torch.device("cpu")


def made(lengths: tuple[int, ...], seed: int = 0) -> SeriesSet:
    rng = np.random.default_rng(seed)
    n = sum(lengths)
    return SeriesSet(
        lines=np.arange(n),
        starts=np.append(0, np.cumsum(lengths)),
        keys=np.arange(len(lengths), dtype=np.uint64),
        features=rng.normal(0, 1, (n, D)).astype(np.float16),
        places=np.arange(n),
        logits=rng.normal(0, 2, (n, K)).astype(np.float32),
        z_norm=rng.random(n).astype(np.float32),
        gap_mm=np.full(n, 5, np.float32),
    )


def head(kind: str, trained: bool = True) -> SeriesHead:
    torch.manual_seed(1)
    net = SeriesHead(D, K, TrainConfig(head=kind, head_features=16)).eval()
    if trained:
        torch.nn.init.normal_(net.correct.weight)
    return net


@pytest.mark.parametrize("kind", ["gru", "transformer"])
def test_an_untrained_head_corrects_nothing(kind: str) -> None:
    assert not corrections(head(kind, trained=False), made((3, 7, 1)), CPU).any()


@pytest.mark.parametrize("kind", ["gru", "transformer"])
def test_a_series_does_not_depend_on_the_rest_of_its_batch(kind: str) -> None:
    of, net = made((3, 70, 1, 12)), head(kind)
    together = corrections(net, of, CPU)
    for series in range(4):
        batch, which = of.batch(np.array([series]), CPU)
        with torch.inference_mode():
            alone = net(batch)[0].numpy()
        np.testing.assert_allclose(alone, together[which[0]], atol=1e-5)


@pytest.mark.parametrize("kind", ["gru", "transformer"])
def test_values_in_the_padding_do_not_matter(kind: str) -> None:
    batch, _ = made((2, 5)).batch(np.array([0, 1]), CPU)
    noise = torch.where(batch.real[..., None], batch.features, torch.full_like(batch.features, 9.0))
    other = SeriesBatch(noise, batch.logits, batch.z_norm, batch.gap_mm, batch.lengths)
    with torch.inference_mode():
        a, b = head(kind)(batch), head(kind)(other)
    assert torch.equal(a, b)
    assert not a[0, 2:].any()
    assert batch.real.tolist() == [[True, True, False, False, False], [True] * 5]


@pytest.mark.parametrize("kind", ["gru", "transformer"])
def test_slices_on_both_sides_are_used(kind: str) -> None:
    batch, _ = made((9,)).batch(np.array([0]), CPU)
    net = head(kind)
    for moved in (0, 8):
        features = batch.features.clone()
        features[0, moved] += torch.linspace(-1, 1, D)
        other = SeriesBatch(features, batch.logits, batch.z_norm, batch.gap_mm, batch.lengths)
        with torch.inference_mode():
            assert (net(batch) - net(other))[0, 4].abs().max() > 1e-6


@pytest.mark.parametrize("kind", ["gru", "transformer"])
def test_a_head_learns_from_neighbours_with_a_few_dozen_series(kind: str) -> None:
    """A slice is positive if a neighbour shows a sign; attention alone would need hundreds of series."""
    rng = np.random.default_rng(0)
    net, of = head(kind, trained=False), made((10,) * 48, seed=3)
    signs = rng.random((48, 10)) < 0.2
    beside = np.pad(signs, ((0, 0), (1, 1)))
    labels = torch.from_numpy((beside[:, 2:] | beside[:, :-2]).astype(np.float32))
    batch, _ = of.batch(np.arange(48), CPU)
    batch.features[..., 0] = torch.from_numpy(np.where(signs, 3.0, -1.0))
    batch.logits[:] = -1.0
    optimizer = torch.optim.AdamW(net.parameters(), 1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits((batch.logits + net(batch))[:32, :, 0], labels[:32])
        loss.backward()
        optimizer.step()
    with torch.inference_mode():
        others = F.binary_cross_entropy_with_logits((batch.logits + net(batch))[32:, :, 0], labels[32:])
    assert others < 0.25  # 0.63 without the neighbours


def test_blocks_hold_complete_series() -> None:
    lengths = (3, 4, 50, 2, 2)
    order = SeriesOrder(np.arange(61), np.append(0, np.cumsum(lengths)), np.arange(61.0))
    blocks = list(in_blocks(order, 8))
    assert [np.diff(block.starts).tolist() for block in blocks] == [[3, 4], [50], [2, 2]]
    assert np.concatenate([block.lines for block in blocks]).tolist() == list(range(61))
