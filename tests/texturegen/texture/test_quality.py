import math
from dataclasses import astuple

import numpy as np
import pytest
from scipy.stats import wasserstein_distance

import tests.texturegen.texture.reference as reference
from texturegen.errors import UserError
from texturegen.texture import synthesize
from texturegen.texture.quality import measure

ALL = 10**9


def noise(height, width, seed=0, levels=256):
    """Smooth noise: neighbouring windows are similar, as in photographs."""
    values = np.random.default_rng(seed).integers(0, levels, (height + 1, width + 1, 3)) * (255 // (levels - 1))
    return ((values[1:, 1:] + values[:-1, 1:] + values[1:, :-1] + values[:-1, :-1]) // 4).astype(np.uint8)


@pytest.mark.parametrize(
    ("sides", "size", "levels"),
    [
        ([(12, 12)], (15, 13), 256),
        ([(9, 14), (13, 8), (7, 7)], (14, 7), 256),
        ([(12, 13)], (14, 14), 2),
        ([(13, 10), (6, 30), (21, 18), (20, 3)], (19, 22), 256),  # small patches among the others, hundreds of windows
    ],
)
def test_equals_reference_over_all_windows(sides, size, levels):
    patches = [noise(*side, seed, levels) for seed, side in enumerate(sides)]
    texture = noise(*size, seed=9, levels=levels)
    texture[:8, :7] = patches[0][:8, :7]  # some windows have an exact match
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


def test_sampled_figures_are_unbiased():
    patches, texture = [noise(20, 20)], noise(12, 12, seed=1)
    windows = 6 * 6
    every = [measure(patches, texture, seed, samples) for seed, samples in ((0, 14 * 14), (5, ALL))]
    np.testing.assert_allclose(astuple(every[0]), astuple(every[1]), rtol=1e-12)
    few = [measure(patches, texture, seed, samples=5) for seed in range(100)]
    np.testing.assert_array_equal(astuple(few[0]), astuple(measure(patches, texture, 0, samples=5)))
    assert len({quality.coherence for quality in few}) > windows // 2
    for figure in ("coherence", "completeness", "verbatim"):
        values = [getattr(quality, figure) for quality in few]
        error = np.std(values) / math.sqrt(len(values))
        assert error > 0
        assert np.mean(values) == pytest.approx(getattr(every[0], figure), abs=3 * error)


def test_sample_is_stratified():
    dark, bright = np.full((9, 9, 3), 0, np.uint8), np.full((9, 9, 3), 200, np.uint8)
    half = {measure([dark, bright], dark, seed, samples=2).completeness for seed in range(20)}
    assert half == {100}
    third = {round(measure([dark, bright], dark, seed, samples=3).completeness) for seed in range(20)}
    assert third == {67, 133}


def test_copy_is_perfect_except_verbatim():
    patch = noise(20, 24)
    quality = measure([patch], patch, samples=ALL)
    assert (quality.histogram, quality.autocorrelation) == (0, 0)
    assert (quality.coherence, quality.completeness, quality.verbatim) == (0, 0, 1)


def test_shifted_copy():
    patch = noise(20, 20) // 2
    quality = measure([patch], patch + np.uint8(10), samples=ALL)
    assert quality.histogram == pytest.approx(10)
    assert 0 < quality.coherence <= 10
    assert 0 < quality.completeness <= 10


def test_texture_of_one_of_two_patches():
    dark, bright = np.full((10, 10, 3), 0, np.uint8), np.full((10, 10, 3), 200, np.uint8)
    quality = measure([dark, bright], dark, samples=ALL)
    assert quality.coherence == 0
    assert quality.completeness == pytest.approx(100)
    assert quality.histogram == pytest.approx(100)


def test_first_window_wins_ties():
    texture = np.full((7, 8, 3), 10, np.uint8)
    texture[:, 7] = 50
    first, later = texture.copy(), texture[:, :7].copy()
    first[0, 0, 0] += 2
    # As far from the left window as the first patch, although its block sums equal those of the window.
    later[0, :2, 0] = later[1, :2, 1] = 9, 11
    assert measure([first, later], texture, samples=ALL).verbatim == 1
    assert measure([later, first], texture, samples=ALL).verbatim == 0


def test_exact_bound_does_not_exclude_nearest_window():
    """All values of a 2x2 block differ by the same amount, so the bound from block sums is exact."""
    window = noise(7, 7) // 2 + np.uint8(50)
    step = np.zeros((7, 7, 1), np.uint8)
    step[np.ix_((0, 1, 2, 3, 5, 6), (0, 1, 2, 3, 5, 6))] = 4
    signs = np.indices((7, 7)).sum(0)[..., None] % 2 * 2 - 1
    nearest, farther = window + step, (window + step * signs).astype(np.uint8)
    farther[4, 4, 0] += 2  # but all its sums of blocks equal the window's
    quality = measure([farther, nearest], window)
    assert quality.coherence == pytest.approx(4 * 6 / 7)
    assert measure([farther], window).coherence == pytest.approx(math.sqrt((16 * 108 + 4) / 147))


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
def test_figures_are_nan_without_windows(patch_size, size):
    quality = measure([noise(*patch_size)], noise(*size), source=np.zeros((*size, 3), np.int32))
    assert math.isnan(quality.coherence)
    assert math.isnan(quality.completeness)
    assert math.isnan(quality.verbatim)
    assert math.isfinite(quality.histogram)
    assert math.isfinite(quality.largest_copy)
    assert math.isnan(quality.autocorrelation) == (size == (1, 1))


def test_width_of_one_window_has_no_pairs():
    quality = measure([noise(12, 12)], noise(12, 7))
    assert math.isnan(quality.verbatim)
    assert math.isfinite(quality.coherence)


def test_texture_scores_between_copy_and_noise():
    patches = [noise(32, 32, levels=3)]
    texture = measure(patches, synthesize(patches, (48, 48)).image)
    assert texture.coherence < measure(patches, noise(48, 48, seed=4, levels=3)).coherence


def test_autocorrelation_does_not_overflow():
    """The sums of products exceed 32 bits."""
    patch, texture = noise(8, 40_000) // 8 + 224, noise(210, 200, seed=1) // 8 + 224

    def correlations(image):
        grey = (image.astype(int) @ [299, 587, 114] + 500) // 1000
        height, width = grey.shape
        for dy in range(5):
            for dx in range(-4, 5):
                if (dy, dx) > (0, 0):
                    first = grey[: height - dy, max(0, -dx) : width - max(0, dx)]
                    second = grey[dy:, max(0, dx) : width - max(0, -dx)]
                    covariance = np.mean(first * second) - first.mean() * second.mean()
                    yield 2 * covariance / (first.var() + second.var())

    pairs = zip(correlations(patch), correlations(texture), strict=True)
    expected = np.mean([abs(left - right) for left, right in pairs])
    assert measure([patch], texture, samples=1).autocorrelation == pytest.approx(expected, rel=1e-6)


def copied(places, size):
    """Return a source map that copies blocks from (patch, row, column)."""
    source = np.empty((*size, 3), np.int32)
    for rows, columns, (patch, row, column) in places:
        i, j = np.mgrid[rows, columns]
        source[rows, columns] = np.stack([np.full_like(i, patch), i - rows.start + row, j - columns.start + column], -1)
    return source


@pytest.mark.parametrize("seed", range(12))
def test_largest_copy_equals_reference(seed):
    """The source map has a few random offsets, in regions from single pixels to winding ones that rejoin."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 24, 2)
    patches = [noise(60, 61), noise(59, 64)]
    count = 2 + seed % 3
    offsets = rng.integers(0, (2, 30, 30), (count, 3))
    # Smoothed for large regions; two of the offsets differ only in the patch.
    offsets[1, 1:] = offsets[0, 1:]
    offsets[:2, 0] = 0, 1
    rough = rng.random((height + 2, width + 2, count))
    smooth = sum(rough[i : i + height, j : j + width] for i in range(3) for j in range(3)) if seed % 2 else rough
    source = offsets[np.argmax(smooth[:height, :width], -1)].astype(np.int32)
    source[..., 1] += np.arange(height, dtype=np.int32)[:, None]
    source[..., 2] += np.arange(width, dtype=np.int32)
    quality = measure(patches, noise(height, width), samples=1, source=source)
    assert quality.largest_copy == pytest.approx(reference.largest_copy(patches, source), rel=1e-12)


def test_largest_copy_of_texture_equals_reference():
    patches = [noise(24, 31), noise(40, 26, seed=1)]
    texture = synthesize(patches, (30, 33))
    quality = measure(patches, texture.image, source=texture.source)
    assert quality.largest_copy == pytest.approx(reference.largest_copy(patches, texture.source), rel=1e-12)
    assert 0 < quality.largest_copy < 1


def test_known_copies():
    patches = [noise(10, 10), noise(20, 5, seed=1)]
    texture = noise(20, 24)

    def largest(*places):
        source = copied([(slice(0, 20), slice(0, 24), (1, 0, 0))], (20, 24))
        source[..., 1:] = np.random.default_rng(0).integers(0, (20, 5), (20, 24, 2))
        for rows, columns, _ in places:
            source[rows, columns] = copied(places, (20, 24))[rows, columns]
        return measure(patches, texture, source=source).largest_copy

    assert math.isnan(measure(patches, texture).largest_copy)
    assert largest() < 0.1
    assert largest((slice(5, 15), slice(3, 13), (0, 0, 0))) == 1
    assert largest((slice(0, 20), slice(0, 5), (1, 0, 0))) == 1
    # Adjacent, but with another offset.
    assert largest((slice(5, 9), slice(0, 5), (0, 0, 0)), (slice(5, 9), slice(5, 9), (0, 0, 6))) == 0.2
    # For patches of different sizes, the larger fraction counts, not the larger region.
    assert largest((slice(0, 6), slice(0, 10), (0, 0, 0)), (slice(7, 20), slice(0, 5), (1, 0, 0))) == 0.65
    # A region that continues across the border of a tiling texture counts as two.
    assert largest((slice(0, 5), slice(20, 24), (0, 0, 0)), (slice(0, 5), slice(0, 4), (0, 0, 4))) == 0.2


def test_invalid_arguments_are_refused():
    with pytest.raises(UserError, match="samples must be at least 1, not 0"):
        measure([noise(9, 9)], noise(9, 9), samples=0)
    with pytest.raises(UserError, match="RGB"):
        measure([noise(9, 9)], noise(9, 9)[..., 0])
    patch, texture = noise(12, 12), noise(9, 10)
    with pytest.raises(UserError, match="the texture is grey but the patches are RGB"):
        measure([patch], texture[..., 0])
    source = np.zeros((9, 10, 3), np.int32)
    for wrong, said in (
        (source[:8], r"must be int32 \(9, 10, 3\), .*, not int32 \(8, 10, 3\)"),
        (source.astype(np.int64), "not int64"),
        (source.tolist(), "not a list"),
    ):
        with pytest.raises(UserError, match=said):
            measure([patch], texture, source=wrong)
    for place in ((1, 0, 0), (-1, 0, 0), (0, 12, 0), (0, -1, 0), (0, 0, 12), (0, 0, -1)):
        source[8, 9] = place
        with pytest.raises(UserError, match="outside the patches"):
            measure([patch], texture, source=source)
