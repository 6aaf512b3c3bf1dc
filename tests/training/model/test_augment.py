"""Test augmentation: its effect on pixels, and that it depends only on the slice and the epoch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import stats

from training.data.hashing import GOLDEN, splitmix64
from training.model import draws
from training.model.augment import Augment, Normalise, mix, sample
from training.model.draws import Draws, draw, draw_mixup, uniforms
from training.run.config import TrainConfig

CPU = torch.device("cpu")
MEAN, STD = np.array([0.2, 0.3, 0.4]), np.array([0.5, 0.25, 0.125])
KEYS = st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20).map(lambda keys: np.array(keys, np.uint64))
PLAIN = TrainConfig(flip_probability=0, rotation_degrees=0, brightness=0, contrast=0, noise_sigma=0)


def images(n: int, size: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (n, 3, size, size), np.uint8))


def test_splitmix64_gives_the_published_numbers():
    # The first outputs of the reference implementation from state 1234567, which advances by the golden gamma.
    states = np.uint64(1234567) + np.arange(3, dtype=np.uint64) * GOLDEN
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert splitmix64(states).tolist() == expected


@given(KEYS, st.integers(0, 2**63 - 1), st.integers(0, 1000))
def test_uniforms_depend_only_on_the_key(keys, seed, epoch):
    together = uniforms(seed, epoch, keys, 4)
    alone = np.concatenate([uniforms(seed, epoch, keys[i : i + 1], 4) for i in range(len(keys))])
    np.testing.assert_array_equal(together, alone)
    assert ((together >= 0) & (together < 1)).all()


def test_uniforms_are_uniform_and_unrelated():
    u = uniforms(0, 0, np.arange(20_000, dtype=np.uint64), 3)
    later = uniforms(0, 1, np.arange(20_000, dtype=np.uint64), 3)
    other = uniforms(1, 0, np.arange(20_000, dtype=np.uint64), 3)
    for column in (*u.T, *later.T, *other.T):
        assert stats.kstest(column, "uniform").pvalue > 1e-4
    everything = np.corrcoef(np.hstack([u, later, other]).T) - np.eye(9)
    assert np.abs(everything).max() < 0.035  # 5 sigma


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(6)), st.integers(1, 6))
def test_an_image_is_augmented_the_same_in_any_batch(order, size):
    pixels, keys = images(6), np.arange(6, dtype=np.uint64) << np.uint64(40)
    augmenter = Augment(TrainConfig(), MEAN, STD, CPU)
    whole = augmenter(pixels, keys, epoch=3)
    for begin in range(0, 6, size):
        part = order[begin : begin + size]
        assert torch.equal(augmenter(pixels[part], keys[part], epoch=3), whole[part])


def test_another_epoch_or_seed_augments_differently():
    pixels, keys = images(4), np.arange(4, dtype=np.uint64)
    first = Augment(TrainConfig(), MEAN, STD, CPU)
    assert not torch.equal(first(pixels, keys, 0), first(pixels, keys, 1))
    assert not torch.equal(first(pixels, keys, 0), Augment(TrainConfig(seed=1), MEAN, STD, CPU)(pixels, keys, 0))


def test_all_off_only_normalises():
    pixels = images(5)
    out = Augment(PLAIN, MEAN, STD, CPU)(pixels, np.arange(5, dtype=np.uint64), 0)
    expected = (pixels.numpy() / 255 - MEAN[:, None, None]) / STD[:, None, None]
    np.testing.assert_allclose(out.numpy(), expected, atol=1e-5)
    assert torch.equal(pixels, images(5))


@pytest.mark.parametrize(
    ("name", "value", "field", "low", "high"),
    [
        ("rotation_degrees", 90.0, "angle", -np.pi / 2, np.pi / 2),
        ("brightness", 0.25, "brightness", 0.75, 1.25),
        ("contrast", 0.5, "contrast", 0.5, 1.5),
        ("noise_sigma", 0.125, "sigma", 0.0, 0.125),
    ],
)
def test_each_setting_controls_its_own_random_number(name, value, field, low, high):
    keys = np.arange(5000, dtype=np.uint64)
    off = draw(PLAIN, 0, keys)
    on = draw(TrainConfig(**{**vars(PLAIN), name: value}), 0, keys)
    for other in vars(off):
        if other != field:
            np.testing.assert_array_equal(getattr(on, other), getattr(off, other))
    values = getattr(on, field)
    assert stats.kstest(values, "uniform", args=(low, high - low)).pvalue > 1e-4
    assert ((values >= low) & (values <= high)).all()


def test_flips_have_the_given_probability():
    keys = np.arange(10_000, dtype=np.uint64)
    assert (draw(TrainConfig(flip_probability=0.25), 0, keys).flip == -1).mean() == pytest.approx(0.25, abs=0.02)
    assert (draw(TrainConfig(flip_probability=1), 0, keys).flip == -1).all()


def test_flip_mirrors_left_to_right():
    grey = images(3).float()
    flipped = sample(grey, np.array([-1, 1, -1], np.float32), np.zeros(3, np.float32))
    expected = torch.stack([grey[0].flip(2), grey[1], grey[2].flip(2)])
    torch.testing.assert_close(flipped, expected, atol=1e-2, rtol=0)


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_quarter_turns_are_exact_and_counter_clockwise(turns):
    grey = images(2, size=17).float()
    turned = sample(grey, np.ones(2, np.float32), np.full(2, turns * np.pi / 2, np.float32))
    torch.testing.assert_close(turned, torch.rot90(grey, turns, (2, 3)), atol=0.05, rtol=0)


def test_rotation_agrees_with_pillow_and_fills_with_0():
    ramp = np.linspace(50, 200, 64, dtype=np.float32)
    picture = np.add.outer(ramp, ramp[::-1]) / 2
    degrees = 20.0
    expected = np.array(Image.fromarray(picture).rotate(degrees, Image.Resampling.BILINEAR, fillcolor=0))
    grey = torch.from_numpy(picture)[None, None].expand(1, 3, -1, -1)
    turned = sample(grey, np.ones(1, np.float32), np.full(1, np.deg2rad(degrees), np.float32))[0, 0].numpy()
    away_from_the_edge = (slice(16, 48),) * 2
    np.testing.assert_allclose(turned[away_from_the_edge], expected[away_from_the_edge], atol=0.5)
    for corner in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        assert turned[corner] == 0


def test_flip_comes_before_the_rotation():
    grey = images(1, size=17).float()
    angle = np.full(1, np.pi / 2, np.float32)
    both = sample(grey, -np.ones(1, np.float32), angle)
    torch.testing.assert_close(both, torch.rot90(grey.flip(3), 1, (2, 3)), atol=0.05, rtol=0)


def sampled_by_hand(image: np.ndarray, flip: float, angle: float) -> np.ndarray:
    """Sample one image (C, S, S) bilinearly in float64, pixel by pixel, filling with 0."""
    size = image.shape[-1]
    middle = (size - 1) / 2
    padded = np.pad(image.astype(np.float64), ((0, 0), (1, 1), (1, 1)))
    y, x = np.mgrid[:size, :size] - middle
    # The input position of an output pixel is found by a clockwise turn, with y pointing down, and then mirroring.
    from_x = flip * (np.cos(angle) * x - np.sin(angle) * y) + middle
    from_y = np.sin(angle) * x + np.cos(angle) * y + middle
    from_x, from_y = np.clip(from_x, -1, size), np.clip(from_y, -1, size)
    left, top = np.minimum(np.floor(from_x), size - 1).astype(int), np.minimum(np.floor(from_y), size - 1).astype(int)
    right, below = from_x - left, from_y - top
    corners = (
        (top, left, (1 - right) * (1 - below)),
        (top, left + 1, right * (1 - below)),
        (top + 1, left, (1 - right) * below),
        (top + 1, left + 1, right * below),
    )
    return sum(weight * padded[:, row + 1, column + 1] for row, column, weight in corners)


def augmented_by_hand(pixels: np.ndarray, draws: Draws, numbers: np.ndarray, mean: np.ndarray, std: np.ndarray):
    """Augment in float64, one image and one step after the other, as documented for `Augment`."""
    out = []
    for i, image in enumerate(pixels):
        grey = sampled_by_hand(image, draws.flip[i], float(draws.angle[i])) / 255
        bright = grey * np.float64(draws.brightness[i])
        middle = bright.mean((1, 2), keepdims=True)
        stretched = (bright - middle) * np.float64(draws.contrast[i]) + middle
        begin = int(np.float64(draws.offset[i]) * (len(numbers) - image.size))
        noise = numbers[begin : begin + image.size].reshape(image.shape) * np.float64(draws.sigma[i])
        out.append((np.clip(stretched + noise, 0, 1) - mean[:, None, None]) / std[:, None, None])
    return np.stack(out)


@pytest.mark.parametrize("compiled", [False, True])
def test_the_result_equals_a_step_by_step_computation_in_float64(compiled, monkeypatch):
    """Compile with a backend that runs the traced graph eagerly."""
    compile_function = torch.compile
    monkeypatch.setattr(torch, "compile", lambda of, **how: compile_function(of, backend="aot_eager", **how))
    config = TrainConfig(brightness=0.3, contrast=0.3, noise_sigma=0.2, rotation_degrees=40, compile=compiled)
    pixels, keys = images(7, size=33), np.arange(7, dtype=np.uint64)
    augment = Augment(config, MEAN, STD, CPU)
    out = augment(pixels, keys, 5)
    expected = augmented_by_hand(pixels.numpy(), draw(config, 5, keys), augment._noise.numpy().astype(float), MEAN, STD)
    # Positions in float32 are off by up to 1e-5 px, and neighbouring pixels here differ by up to the full range.
    np.testing.assert_allclose(out.numpy(), expected, atol=2e-5 / STD.min(), rtol=0)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert out.dtype == torch.float32
    assert torch.equal(pixels, images(7, size=33))


def test_output_is_bfloat16_if_the_network_computes_in_it():
    config, pixels, keys = TrainConfig(), images(5), np.arange(5, dtype=np.uint64)
    augment = Augment(config, MEAN, STD, CPU)
    expected = augment(pixels, keys, 0)
    augment._dtype = torch.bfloat16
    out = augment(pixels, keys, 0)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, expected.bfloat16())
    for of in (expected, out):  # the layout that convolutions on a GPU prefer
        assert of.is_contiguous(memory_format=torch.channels_last)


def test_noise_is_normal_and_different_for_each_image():
    config = TrainConfig(**{**vars(PLAIN), "noise_sigma": 0.1})
    grey = torch.full((4, 3, 64, 64), 128, dtype=torch.uint8)
    keys = np.arange(4, dtype=np.uint64)
    noise = (Augment(config, np.zeros(3), np.ones(3), CPU)(grey, keys, 0) - 128 / 255).flatten(1).numpy()
    for image, sigma in zip(noise, draw(config, 0, keys).sigma, strict=True):
        assert stats.kstest(image, stats.norm(scale=float(sigma)).cdf).pvalue > 1e-4
    assert np.abs(np.corrcoef(noise) - np.eye(4)).max() < 0.05


def test_large_images_have_different_noise_too(monkeypatch):
    """From 2,365 px with three channels, an image needs more numbers than the table for small images has."""
    monkeypatch.setattr(draws, "NOISE_NUMBERS", 1 << 12)
    config = TrainConfig(**{**vars(PLAIN), "noise_sigma": 0.1, "size_px": 40})
    grey = torch.full((4, 3, 40, 40), 128, dtype=torch.uint8)
    noise = Augment(config, np.zeros(3), np.ones(3), CPU)(grey, np.arange(4, dtype=np.uint64), 0).flatten(1).numpy()
    assert np.abs(np.corrcoef(noise) - np.eye(4)).max() < 0.08


def test_grey_levels_are_clamped_before_they_are_normalised():
    config = TrainConfig(brightness=1, contrast=1, noise_sigma=1)
    out = Augment(config, np.zeros(3), np.ones(3), CPU)(images(16), np.arange(16, dtype=np.uint64), 0)
    assert out.min() == 0
    assert out.max() == 1


def test_a_constant_channel_does_not_divide_by_0():
    out = Normalise(np.array([0.5, 0, 0]), np.array([0.0, 1, 1]), CPU)(torch.full((1, 3, 2, 2), 0.5))
    assert torch.isfinite(out).all()
    assert (out[0, 0] == 0).all()


def test_mixup_is_the_convex_sum_of_images_labels_and_positions():
    own, partner = torch.rand(4, 3, 5, 5), torch.rand(4, 3, 5, 5)
    share = torch.tensor([0.0, 1.0, 0.25, 0.6])
    mixed = mix(own, partner, share)
    torch.testing.assert_close(mixed, share.view(-1, 1, 1, 1) * own + (1 - share).view(-1, 1, 1, 1) * partner)
    assert torch.equal(mixed[0], partner[0])
    assert torch.equal(mixed[1], own[1])
    assert torch.equal(mix(torch.tensor([0.0]), torch.tensor([1.0]), torch.tensor([0.25])), torch.tensor([0.75]))
    labels = mix(torch.tensor([[1.0, torch.nan]]), torch.tensor([[0.0, 1.0]]), torch.tensor([0.75]))
    assert labels[0, 0] == 0.75
    assert labels[0, 1].isnan()


def test_a_label_is_kept_if_its_image_has_the_full_share():
    nothing, one = torch.tensor([[torch.nan]]), torch.tensor([[1.0]])
    assert mix(one, nothing, torch.tensor([1.0])) == 1
    assert mix(nothing, one, torch.tensor([0.0])) == 1
    assert mix(nothing, one, torch.tensor([1.0])).isnan()
    assert mix(one, nothing, torch.tensor([0.0])).isnan()
    assert mix(one, nothing, torch.tensor([0.999])).isnan()


def test_mixup_draws_a_beta_share_and_a_partner_by_seed_and_batch():
    config = TrainConfig(mixup_alpha=0.2)
    shares, partners = draw_mixup(config, 7, 20_000)
    lower = shares[shares < 0.5]  # the distribution is symmetric, and float32 rounds 2 % of it to exactly 1
    assert abs(len(lower) / 20_000 - 0.5) < 0.02
    assert stats.kstest(lower, lambda x: 2 * stats.beta(0.2, 0.2).cdf(x)).pvalue > 1e-4
    np.testing.assert_array_equal(np.sort(partners), np.arange(20_000))
    again = draw_mixup(config, 7, 20_000)
    np.testing.assert_array_equal(shares, again[0])
    np.testing.assert_array_equal(partners, again[1])
    assert not np.array_equal(partners, draw_mixup(config, 8, 20_000)[1])
    assert not np.array_equal(partners, draw_mixup(TrainConfig(seed=1), 7, 20_000)[1])
