"""Quality of a texture: six figures that compare it with its patches, each better when lower.

Read all six together: a tiled patch is best in the first four, and shuffled pixels are best in `histogram`, `verbatim`
and `largest_copy`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit

from texturegen.errors import UserError
from texturegen.texture.kernels.rand import derive
from texturegen.texture.kernels.search import WINDOW, find_nearest, lay_out
from texturegen.texture.patches import check_image, is_grey, read_patches
from texturegen.texture.quality.autocorrelation import autocorrelation_distance


@dataclass(frozen=True)
class Quality:
    """The quality figures of one texture. Lower is better for each; NaN if a figure is undefined. Windows are 7x7.

    Three figures are estimated from a sample of windows. For a single texture and the default number of samples, their
    standard error is 2.5 to 2.9 (coherence), 1.9 to 2.4 (completeness) and 0.14 to 0.16 (verbatim), measured on
    `coherent` textures of 32 to 224 px from 12 Kodak photographs. Means over many textures are unbiased.

    Attributes
    ----------
    histogram : Wasserstein-1 distance of the colour histograms, mean of the channels. 0 .. 255 grey levels.
    autocorrelation : mean absolute difference of the luminance's normalised autocorrelation at shifts of up to 4
        pixels. 0 .. 2.
    coherence : mean distance from a texture window to the nearest patch window: content that the patches lack. 0 .. 255
        grey levels (RMS).
    completeness : mean distance from a patch window to the nearest texture window: content that the texture lacks.
        0 .. 255 grey levels (RMS).
    verbatim : fraction of adjacent texture windows whose nearest patch windows are adjacent too: copying at the scale
        of windows. 0 .. 1.
    largest_copy : largest 4-connected region copied with one offset, as a fraction of its patch; at 1, the texture
        contains a whole patch, with any object in it. 0 .. 1. A viewer sees a region that continues across the border
        of a tiling texture as two, so it counts as two.
    """

    histogram: float
    autocorrelation: float
    coherence: float
    completeness: float
    verbatim: float
    largest_copy: float


def measure(
    patches: Sequence[np.ndarray],
    texture: np.ndarray,
    seed: int = 0,
    samples: int = 10,
    *,
    source: np.ndarray | None = None,
) -> Quality:
    """Compare a texture with its patches.

    Parameters
    ----------
    patches : the patches that the texture was made from, uint8, all RGB (h, w, 3) or all grey (h, w) or (h, w, 1).
    texture : the image, RGB or grey like the patches. Grey is treated as three equal channels.
    seed : seed of the sample of windows, 0 <= seed < 2**64.
    samples : number of windows (coherence, completeness) and pairs of windows (verbatim) to sample, at least 1; if
        there are fewer, all are used. The sample is stratified, and the nearest window is exact. Patches smaller than a
        window are left out of these three figures.
    source : the texture's source map, int32 (H, W, 3); without it, largest_copy is NaN.

    Returns
    -------
    The six figures.

    Raises
    ------
    UserError : an image is not uint8 RGB or grey, or both kinds are mixed; `samples` is less than 1; the source map has
        the wrong shape or dtype, or refers to pixels outside the patches.

    References
    ----------
    .. [1] D. Simakov, Y. Caspi, E. Shechtman, M. Irani, "Summarizing visual data using bidirectional similarity",
           CVPR 2008, section 2 (coherence and completeness).
    .. [2] W. Li, E. Salari, "Successive elimination algorithm for motion estimation", IEEE Transactions on Image
           Processing 4(1), 1995 (the search for the nearest window).

    Examples
    --------
    >>> from texturegen import cut_patches, open_shards, synthesize
    >>> from texturegen.texture.quality import measure
    >>> patches, _ = cut_patches(open_shards("shards")[0].image, seed=0)
    >>> texture = synthesize(patches, size=(32, 32))
    >>> quality = measure(patches, texture.image, source=texture.source)
    >>> 0 < quality.coherence < 255, 0 < quality.largest_copy <= 1
    (True, True)

    A patch compared with itself neither adds nor lacks content:

    >>> same = measure(patches[:1], patches[0])
    >>> same.coherence, same.completeness, same.histogram
    (0.0, 0.0, 0.0)
    """
    if samples < 1:
        raise UserError(f"samples must be at least 1, not {samples}")
    copies = read_patches(patches)
    check_image(texture, "the texture")
    if is_grey(texture) != is_grey(patches[0]):
        kinds = ("grey", "RGB") if is_grey(texture) else ("RGB", "grey")
        raise UserError(f"the texture is {kinds[0]} but the patches are {kinds[1]}; convert all to one kind")
    (image,) = read_patches([texture])
    if source is None:
        source = np.empty((0, 0, 3), dtype=np.int32)
    elif not isinstance(source, np.ndarray) or source.dtype != np.int32 or source.shape != image.shape:
        found = f"{source.dtype} {source.shape}" if isinstance(source, np.ndarray) else f"a {type(source).__name__}"
        raise UserError(f"the source map must be int32 {image.shape}, as `synthesize` returns it, not {found}")
    pixels = np.concatenate([patch.reshape(-1, 3) for patch in copies])
    sides = np.array([patch.shape[:2] for patch in copies])
    texture_pixels, texture_sides = image.reshape(-1, 3), np.array([image.shape[:2]])
    largest = _largest_copy(np.require(source, requirements=["C", "W"]), sides) if source.size > 0 else np.nan
    if largest < 0:
        raise UserError(
            "the source map refers to a pixel outside the patches; pass the patches that the texture was made from"
        )
    coherence, completeness, verbatim = _window_figures(
        pixels, sides, texture_pixels, texture_sides, np.uint64(seed), samples
    )
    return Quality(
        histogram=_histogram_distance(pixels, texture_pixels),
        autocorrelation=autocorrelation_distance(pixels, sides, texture_pixels, texture_sides),
        coherence=coherence,
        completeness=completeness,
        verbatim=verbatim,
        largest_copy=largest,
    )


def _window_figures(
    pixels: np.ndarray,
    sides: np.ndarray,
    texture_pixels: np.ndarray,
    texture_sides: np.ndarray,
    key: np.uint64,
    samples: int,
) -> tuple[float, float, float]:
    """Return coherence, completeness and verbatim."""
    exemplar, output = lay_out(pixels, sides), lay_out(texture_pixels, texture_sides)
    if exemplar.total == 0 or output.total == 0:
        return np.nan, np.nan, np.nan
    to_exemplar, adjacent = find_nearest(output, exemplar, samples, np.uint64(derive(key, 0)), True)
    to_output, _ = find_nearest(exemplar, output, samples, np.uint64(derive(key, 1)), False)
    pairs = adjacent[adjacent >= 0]
    return (
        float(np.sqrt(to_exemplar / (3 * WINDOW**2)).mean()),
        float(np.sqrt(to_output / (3 * WINDOW**2)).mean()),
        float(pairs.mean()) if len(pairs) > 0 else np.nan,
    )


@njit(nogil=True, cache=True)
def _largest_copy(source: np.ndarray, sides: np.ndarray) -> float:
    """Return the area of the largest 4-connected region of one patch and offset, as a fraction of that patch.

    Regions are labelled row by row, and a union-find forest joins labels that meet (Rosenfeld and Pfaltz, "Sequential
    operations in digital picture processing", Journal of the ACM 13(4), 1966). Return -1 if a pixel is outside its
    patch.
    """
    height, width = source.shape[:2]
    parents = np.empty(height * width, dtype=np.int32)
    counts = np.empty(height * width, dtype=np.int32)
    patches = np.empty(height * width, dtype=np.int32)
    labels = np.empty(width, dtype=np.int32)  # of this row up to the current column, of the row above from there on
    used = 0
    for row in range(height):
        line, above = source[row], source[max(row - 1, 0)]
        joined = False
        label = 0
        for column in range(width):
            patch, y, x = line[column]
            if not (0 <= patch < len(sides) and 0 <= y < sides[patch, 0] and 0 <= x < sides[patch, 1]):
                return -1.0
            before = max(column - 1, 0)
            # Pixels of the first row and column are compared with themselves, which never matches.
            left = (line[before, 0] == patch) & (line[before, 1] == y) & (line[before, 2] == x - 1)
            up = (above[column, 0] == patch) & (above[column, 1] == y - 1) & (above[column, 2] == x)
            if left:
                # If the pixel to the left was also joined upwards, all four already belong to one region.
                if up and not joined:
                    label = _unite(parents, label, labels[column])
            elif up:
                label = labels[column]
            else:
                label = used
                parents[label], counts[label], patches[label] = label, 0, patch
                used += 1
            counts[label] += 1
            labels[column] = label
            joined = up
    fraction = 0.0
    for label in range(used - 1, -1, -1):  # parents have smaller labels
        patch = patches[label]
        if parents[label] == label:
            fraction = max(fraction, counts[label] / (sides[patch, 0] * sides[patch, 1]))
        else:
            counts[parents[label]] += counts[label]
    return fraction


@njit(nogil=True, cache=True)
def _unite(parents: np.ndarray, one: int, other: int) -> int:
    """Merge two trees of labels; return the root."""
    one, other = _root(parents, one), _root(parents, other)
    root = min(one, other)
    parents[max(one, other)] = root
    return root


@njit(nogil=True, cache=True)
def _root(parents: np.ndarray, label: int) -> int:
    while parents[label] != label:
        parents[label] = parents[parents[label]]
        label = parents[label]
    return label


@njit(nogil=True, cache=True)
def _histogram_distance(pixels: np.ndarray, texture_pixels: np.ndarray) -> float:
    ours, theirs = _count_colours(texture_pixels), _count_colours(pixels)
    total = 0.0
    for channel in range(3):
        below, their_below = 0, 0
        for level in range(256):
            below += ours[channel, level]
            their_below += theirs[channel, level]
            total += abs(below / len(texture_pixels) - their_below / len(pixels))
    return total / 3


@njit(nogil=True, cache=True)
def _count_colours(pixels: np.ndarray) -> np.ndarray:
    counts = np.zeros((3, 256), dtype=np.int64)
    for pixel in range(len(pixels)):
        for channel in range(3):
            counts[channel, pixels[pixel, channel]] += 1
    return counts
