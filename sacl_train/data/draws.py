"""Random numbers by name: each is a hash of its purpose, so none depends on how many were drawn before it.

A sample's views are the same in any batch, on any number of processes, and in a resumed run. The hash is SplitMix64
(Steele et al. 2014, "Fast splittable pseudorandom number generators", figure 15), applied once per word.
"""

from dataclasses import dataclass

import numpy as np

GOLDEN, FIRST, SECOND = (np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def mix(state: np.ndarray, word: int | np.ndarray) -> np.ndarray:
    """Return new states: uint64 `state` of any shape, hashed with one word for all or one word each."""
    z = (state ^ np.asarray(word).astype(np.uint64)) + GOLDEN
    z = (z ^ (z >> np.uint64(30))) * FIRST
    z = (z ^ (z >> np.uint64(27))) * SECOND
    return z ^ (z >> np.uint64(31))


def uniform(state: np.ndarray, word: int) -> np.ndarray:
    """Return float32 numbers in [0, 1) in the shape of `state`: for each state the number with the name `word`."""
    return (mix(state, word) >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)


@dataclass(frozen=True)
class Draws:
    """Random numbers of the samples of a batch.

    Attributes
    ----------
    seed : of the run.
    epoch : number of the epoch.
    samples : int64 (N,), the samples' numbers in the shards.

    Examples
    --------
    >>> draws = Draws(seed=0, epoch=2, samples=np.array([7, 8]))
    >>> bool((draws.of(1)[0] == Draws(0, 2, np.array([7])).of(1)[0]).all())  # in any batch
    True
    """

    seed: int
    epoch: int
    samples: np.ndarray

    def of(self, purpose: int) -> np.ndarray:
        """Return states uint64 (N,) for one purpose, for `uniform` and `mix`. The purpose of a view is its number."""
        states = np.zeros(len(self.samples), np.uint64)
        for word in (self.seed, self.epoch, self.samples, purpose):
            states = mix(states, word)
        return states
