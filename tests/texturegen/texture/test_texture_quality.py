import math
from dataclasses import astuple

import numpy as np
import pytest
import texture_reference as reference
from scipy.stats import wasserstein_distance

from texturegen.errors import UserError
from texturegen.texture import synthesize
from texturegen.texture.quality import measure

ALL = 10**9


def noise(height, width, seed=0, levels=256):
    """Smooth noise: neighbouring windows are alike, as in photos."""
    values = np.random.default_rng(seed).integers(0, levels, (height + 1, width + 1, 3)) * (255 // (levels - 1))
    return ((values[1:, 1:] + values[:-1, 1:] + values[1:, :-1] + values[:-1, :-1]) // 4).astype(np.uint8)


@pytest.mark.parametrize(
    ("sides", "size", "levels"),
    [([(12, 12)], (15, 13), 256), ([(9, 14), (13, 8), (7, 7)], (14, 7), 256), ([(12, 13)], (14, 14), 2)],
)
def test_equals_the_reference_over_all_windows(sides, size, levels):
    patches = [noise(*side, seed, levels) for seed, side in enumerate(sides)]
    texture = noise(*size, seed=9, levels=levels)
    texture[:8, :7] = patches[0][:8, :7]  # so that some windows are found exactly
    quality = measure(patches, texture, samples=ALL)
    found = (quality.coherence, quality.completeness, quality.verbatim)
    np.testing.assert_allclose(found, reference.window_figures(patches, texture), rtol=1e-12)

    colours = [np.concatenate([patch[..., channel].ravel() for patch in patches]) for channel in range(3)]
    distances = [wasserstein_distance(colours[channel], texture[..., channel].ravel()) for channel in range(3)]
    assert quality.histogram == pytest.approx(np.mean(distances))

    shifts = [(dy, dx) for dy in range(5) for dx in range(-4, 5) if dy > 0 or dx > 0]
    differences = [
        abs(reference.autocorrelation(patches, *shift) - reference.autocorrelation([texture], *shift))
        for shift in shifts
    ]
    assert quality.autocorrelation == pytest.approx(np.mean(differences))


def test_a_sample_is_drawn_without_repetition():
    patches, texture = [noise(20, 20)], noise(12, 12, seed=1)
    windows = 6 * 6
    every = [measure(patches, texture, seed, samples) for seed, samples in ((0, 14 * 14), (5, ALL))]
    np.testing.assert_allclose(astuple(every[0]), astuple(every[1]), rtol=1e-12)
    few = [measure(patches, texture, seed, samples=4) for seed in range(40)]
    assert few[0] == measure(patches, texture, 0, samples=4)
    assert len({quality.coherence for quality in few}) > windows // 2
    everything = measure(patches, texture, samples=ALL)
    assert np.mean([quality.coherence for quality in few]) == pytest.approx(everything.coherence, rel=0.05)
    assert np.mean([quality.completeness for quality in few]) == pytest.approx(everything.completeness, rel=0.05)


def test_a_copy_is_perfect_but_verbatim():
    patch = noise(20, 24)
    quality = measure([patch], patch, samples=ALL)
    assert (quality.histogram, quality.autocorrelation) == (0, 0)
    assert (quality.coherence, quality.completeness, quality.verbatim) == (0, 0, 1)


def test_a_known_offset():
    patch = noise(20, 20) // 2
    quality = measure([patch], patch + np.uint8(10), samples=ALL)
    assert quality.histogram == pytest.approx(10)
    assert 0 < quality.coherence <= 10
    assert 0 < quality.completeness <= 10


def test_half_of_the_patches_left_out():
    dark, bright = np.full((10, 10, 3), 0, np.uint8), np.full((10, 10, 3), 200, np.uint8)
    quality = measure([dark, bright], dark, samples=ALL)
    assert quality.coherence == 0
    assert quality.completeness == pytest.approx(100)
    assert quality.histogram == pytest.approx(100)


def test_the_first_of_equally_near_windows_counts():
    texture = np.full((7, 8, 3), 10, np.uint8)
    texture[:, 7] = 50
    first, later = texture.copy(), texture[:, :7].copy()
    first[0, 0, 0] += 2
    # As far from the left window as the first patch, though its blocks' sums are the window's own.
    later[0, :2, 0] = later[1, :2, 1] = 9, 11
    assert measure([first, later], texture, samples=ALL).verbatim == 1
    assert measure([later, first], texture, samples=ALL).verbatim == 0


def test_shuffled_pixels_are_neither_coherent_nor_verbatim():
    y, x = np.mgrid[:24, :24]
    patch = np.repeat((100 + 60 * np.sin(y / 4) + 40 * np.cos(x / 5)).astype(np.uint8)[..., None], 3, axis=2)
    shuffled = np.random.default_rng(0).permutation(patch.reshape(-1, 3)).reshape(patch.shape)
    quality = measure([patch], shuffled, samples=ALL)
    assert quality.histogram == 0
    assert quality.coherence > 20
    assert quality.verbatim < 0.5
    assert quality.autocorrelation > 0.3


def test_constant_images():
    flat = np.full((9, 9, 3), 7, np.uint8)
    quality = measure([flat], flat)
    assert (quality.histogram, quality.autocorrelation, quality.coherence, quality.completeness) == (
        0,
        0,
        0,
        0,
    )
    assert math.isfinite(measure([flat], noise(9, 9)).autocorrelation)


@pytest.mark.parametrize(("patch_size", "size"), [((6, 20), (20, 20)), ((20, 20), (20, 6)), ((1, 1), (1, 1))])
def test_windows_that_do_not_fit_give_nan(patch_size, size):
    quality = measure([noise(*patch_size)], noise(*size))
    assert math.isnan(quality.coherence)
    assert math.isnan(quality.completeness)
    assert math.isnan(quality.verbatim)
    assert math.isfinite(quality.histogram)
    assert math.isnan(quality.autocorrelation) == (size == (1, 1))


def test_width_of_one_window_has_no_pairs():
    quality = measure([noise(12, 12)], noise(12, 7))
    assert math.isnan(quality.verbatim)
    assert math.isfinite(quality.coherence)


def test_of_a_texture_lies_between_copy_and_noise():
    patches = [noise(32, 32, levels=3)]
    texture = measure(patches, synthesize(patches, (48, 48)).image)
    assert texture.coherence < measure(patches, noise(48, 48, seed=4, levels=3)).coherence


def test_refused():
    with pytest.raises(UserError, match="samples is 0"):
        measure([noise(9, 9)], noise(9, 9), samples=0)
    with pytest.raises(UserError, match="RGB"):
        measure([noise(9, 9)], noise(9, 9)[..., 0])
