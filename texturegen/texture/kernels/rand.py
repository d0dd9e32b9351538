"""Counter-based random numbers: draw n of a stream is a hash of (key, n), so there is no state.

The hash is the output function of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators",
OOPSLA 2014, section 4). Keys are numpy.uint64, because Numba would compile everything a second time for a plain int.
"""

import numpy as np
from numba import njit

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


@njit(nogil=True, cache=True)
def derive(key: np.uint64, number: int) -> np.uint64:
    """Return 64 random bits, which also serve as the key of a stream derived from `key`."""
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
    for place in range(min(count, len(items) - 1)):
        other = place + draw(key, place, len(items) - place)
        items[place], items[other] = items[other], items[place]
