"""Confidence intervals by the bootstrap: the test images are drawn again with replacement (Efron 1979).

They cover the choice of the test images alone. Runs with other seeds differ by more.
"""

from collections.abc import Callable

import numpy as np

RESAMPLES = 1000
LEVEL = 0.95


def bootstrap_interval(
    values: np.ndarray, figure: Callable[[np.ndarray], np.ndarray], resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Return a 95 % percentile interval of a figure that depends on means over images.

    Parameters
    ----------
    values : ndarray float (N, K)
        K numbers per image. All K are drawn together, so a ratio or a difference of two means is paired by image.
    figure : callable
        Maps means float (R, K) to the figure float (R,); not finite where it is undefined, as a ratio to 0 is.
    resamples : int
        Number of resamples R.
    seed : int
        Seed of the draws.

    Returns
    -------
    low, high : float
        NaN if the figure is undefined in every resample.

    Examples
    --------
    >>> hits = np.array([[1.0], [0.0], [1.0], [1.0]])
    >>> low, high = bootstrap_interval(hits, lambda means: means[:, 0])
    >>> bool(low <= hits.mean() <= high)
    True
    """
    rng = np.random.default_rng(seed)
    count = len(values)
    means = np.empty((resamples, values.shape[1]))
    for row in means:
        row[:] = np.bincount(rng.integers(count, size=count), minlength=count) @ values / count
    with np.errstate(invalid="ignore", divide="ignore"):
        found = figure(means)
    found = found[np.isfinite(found)]
    if not len(found):
        return float("nan"), float("nan")
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def mean_interval(values: np.ndarray) -> list[float]:
    """Return the 95 % interval of the mean of values, float (N,), over resampled images, as JSON has it."""
    return list(bootstrap_interval(values[:, None], lambda means: means[:, 0]))
