"""Stateless, counter-based random numbers: draw n of a stream is a hash of (key, n).

The hash is the output function of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators",
OOPSLA 2014, section 4). Numba would compile every function again for a plain int, so keys are numpy.uint64.
"""

import numpy as np
from numba import njit

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


@njit(nogil=True, cache=True)
def derive(key: np.uint64, number: int) -> np.uint64:
    """Return 64 random bits, which can also be the key of a derived stream."""
    bits = np.uint64(key) + _GOLDEN * (np.uint64(number) + np.uint64(1))
    bits = (bits ^ (bits >> np.uint64(30))) * _MIX_1
    bits = (bits ^ (bits >> np.uint64(27))) * _MIX_2
    return bits ^ (bits >> np.uint64(31))


@njit(nogil=True, cache=True)
def draw(key: np.uint64, number: int, limit: int) -> int:
    """Return draw `number` of a stream, uniform in 0 .. limit - 1; limit < 2**32."""
    high = derive(key, number) >> np.uint64(32)
    return int(np.int64((high * np.uint64(limit)) >> np.uint64(32)))


@njit(nogil=True, cache=True)
def shuffle(items: np.ndarray, count: int, key: np.uint64) -> None:
    """Move a random sample of `count` items to the front of a vector, in random order (Fisher-Yates)."""
    for i in range(min(count, len(items) - 1)):
        other = i + draw(key, i, len(items) - i)
        items[i], items[other] = items[other], items[i]
