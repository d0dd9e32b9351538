"""Random numbers by name: each is a hash of what it is for, so none depends on how many were drawn before it.

A sample's views are the same whatever the batch, the number of processes, or the step a run went on from. The hash is
SplitMix64 (Steele et al. 2014, "Fast splittable pseudorandom number generators", figure 15), applied once a word.
"""

from dataclasses import dataclass

import numpy as np

GOLDEN, FIRST, SECOND = (np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def mix(state: np.ndarray, word: int | np.ndarray) -> np.ndarray:
    """uint64 states, any shape, and a word each (or one for all) -> as many new states."""
    z = (state ^ np.asarray(word).astype(np.uint64)) + GOLDEN
    z = (z ^ (z >> np.uint64(30))) * FIRST
    z = (z ^ (z >> np.uint64(27))) * SECOND
    return z ^ (z >> np.uint64(31))


def uniform(state: np.ndarray, word: int) -> np.ndarray:
    """float32 in [0, 1), the shape of `state`: the number called `word` of each state."""
    return (mix(state, word) >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)


@dataclass(frozen=True)
class Draws:
    """The random numbers of a batch: of samples int64 (N,), numbers in the shards, in an epoch of a run of a seed."""

    seed: int
    epoch: int
    samples: np.ndarray

    def of(self, purpose: int) -> np.ndarray:
        """uint64 (N,): states for one purpose, from which `uniform` and `mix` go on. A view's number is its purpose."""
        states = np.zeros(len(self.samples), np.uint64)
        for word in (self.seed, self.epoch, self.samples, purpose):
            states = mix(states, word)
        return states
