"""Stateless random numbers: each is a hash of its purpose, so none depends on how many were drawn before it.

A sample's views are the same in any batch, on any number of processes, and in a resumed run. The hash is SplitMix64
(Steele et al. 2014, "Fast splittable pseudorandom number generators", figure 15), applied once per word.
"""

from dataclasses import dataclass

import numpy as np

GOLDEN, FIRST, SECOND = (np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def mix(state: np.ndarray, word: int | np.ndarray) -> np.ndarray:
    """Hash states, uint64 of any shape, with a word: one for all states, or an array with one for each."""
    z = (state ^ np.asarray(word).astype(np.uint64)) + GOLDEN
    z = (z ^ (z >> np.uint64(30))) * FIRST
    z = (z ^ (z >> np.uint64(27))) * SECOND
    return z ^ (z >> np.uint64(31))


def uniform(state: np.ndarray, word: int) -> np.ndarray:
    """Return float32 numbers in [0, 1), one for each state; different words give independent numbers."""
    return (mix(state, word) >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)


@dataclass(frozen=True)
class Draws:
    """Random numbers of the samples of a batch.

    Attributes
    ----------
    seed : int
        Seed of the run.
    epoch : int
        Index of the epoch.
    samples : ndarray int64 (N,)
        Indices of the samples in the shards.

    Examples
    --------
    >>> draws = Draws(seed=0, epoch=2, samples=np.array([7, 8]))
    >>> bool((draws.of(1)[0] == Draws(0, 2, np.array([7])).of(1)[0]).all())  # the same in any batch
    True
    """

    seed: int
    epoch: int
    samples: np.ndarray

    def of(self, purpose: int) -> np.ndarray:
        """Return a state for each sample, uint64 (N,), for `uniform` and `mix`. The purpose of a view is its index."""
        states = np.zeros(len(self.samples), np.uint64)
        for word in (self.seed, self.epoch, self.samples, purpose):
            states = mix(states, word)
        return states
